"""At the end of a generation the head leaves live sources where they stand, and writes no journal any more."""

from __future__ import annotations

import queue
import time

import pytest
import torch

from parallel.pacing import Pacer
from runtime import head
from runtime.ends import LiveEnds
from runtime.guard import Guard
from runtime.head import Head
from runtime.journal import Journal
from runtime.parts import Opening
from runtime.prompts import Prompts
from runtime.state import Keep
from stages.sources.live import Stop, Turned
from tests.patience import PATIENT_S
from tests.runtime.replaying import CHUNKS, equal
from tests.runtime.test_head import Reasons, Source, always
from tests.runtime.test_replay import CONFIG, World


def opened(make, keep=None, recover_s=None):
    arrived: queue.Queue = queue.Queue()
    guard = Guard(Reasons(), "worker 0")
    made = Head(4, torch.float32, Pacer(9), arrived.put, time.perf_counter, guard, recover_s=recover_s)
    stop, prompts = Stop(), Prompts(CONFIG.stream)
    made.open(0, Opening(prompts, stop, lambda: make(stop, prompts), torch.device("cpu")), keep)
    made.begin(arrived.get(timeout=PATIENT_S))
    return made, arrived


def test_a_stream_goes_on_in_the_next_generation(tmp_path):
    (tmp_path / "alone").mkdir()
    world = World(tmp_path / "alone", "live", {})
    world.play([])
    world.close()
    (tmp_path / "turned").mkdir()
    world, ends = World(tmp_path / "turned", "live", {}), LiveEnds()

    def generation():
        return opened(lambda stop, prompts: world.open(None, Journal(tmp_path / "cuts"), ends, stop, prompts))

    def entries(made, arrived, count):
        found = []
        while len(found) < count:
            made.ask(always)
            found.append(arrived.get(timeout=PATIENT_S))
            made.entered(found[-1])
        return found

    first, arrived = generation()
    for chunk in range(3):
        world.feed(chunk)
    before = entries(first, arrived, 3)
    first.ask(always)  # chunk 3 waits for its sound
    first.close(keeps=True)
    assert arrived.empty() and not first.samplers[0].is_alive() and not first.guard.board.told
    assert [line.chunk for line in Journal(tmp_path / "cuts").lines(0)] == [0, 1, 2]
    second, arrived = generation()
    for chunk in range(3, CHUNKS):
        world.feed(chunk)
    after = entries(second, arrived, CHUNKS + 1)
    assert after[-1].tensors is None
    for a, b in zip(before, after, strict=False):
        assert equal(a.tensors, b.tensors) and equal(a.sidecar, b.sidecar) and a.epoch == b.epoch
    world.close()
    second.samplers[0].join(PATIENT_S)
    assert not ends.opened
    assert (tmp_path / "turned" / "inputs").read_bytes() == (tmp_path / "alone" / "inputs").read_bytes()


def test_a_thread_that_does_not_let_go_is_told_of(monkeypatch):
    class Stuck(Source):
        gate = queue.SimpleQueue()

        def chunk(self, chunk):
            self.gate.get()
            raise Turned

        def turn(self):
            pass

    monkeypatch.setattr(head, "TURN_S", 0.01)
    made, arrived = opened(lambda stop, prompts: Stuck(9))
    made.ask(always)
    with pytest.raises(RuntimeError, match=r"the sources of streams \[0\] do not let go"):
        made.close(keeps=True)
    Stuck.gate.put(None)
    made.samplers[0].join(PATIENT_S)
    assert arrived.empty()


def test_a_cut_that_is_made_holds_a_chunk_back_only_where_two_are(tmp_path):
    class Kept(Source):
        def progress(self, chunk):
            return self

        def write(self, *_):
            return {}

        def keeps(self, whole):
            self.whole = whole

    source = Kept(99)
    made, arrived = opened(lambda *_: source, Keep(str(tmp_path), {}, every=1), recover_s=1.0)
    assert source.whole() == -1
    made.ask(always)
    made.entered(arrived.get(timeout=PATIENT_S))
    for under_way, asked in ((2, 1), (1, 2)):
        made._saving[0] = under_way
        made.ask(always)
        assert made.pacer.lanes[0].asked == asked
    made.close()
