"""What enters the pipeline, and when."""

import math
import queue
import time

import torch

from parallel.pacing import Pacer
from runtime.head import Head
from stages.denoise.denoiser import ChunkConditioning


class Source:
    """Conditioning that answers at once, for `chunks` chunks."""

    def __init__(self, chunks: int):
        self.chunks, self.asked = chunks, []

    def chunk(self, chunk):
        self.asked.append(chunk)
        return ChunkConditioning() if chunk < self.chunks else None

    def text(self, chunk):
        return torch.zeros(1, 1, 4) if chunk in (0, 3) else None

    def epoch(self, chunk):
        return 3 if chunk >= 3 else 0

    def frames(self, chunk):
        return 12 * chunk, 12

    def samples(self, chunk):
        return None

    live = False
    motion = None

    def accepted(self, chunk, entered):
        return 7.0 if chunk == 3 else None

    def close(self):
        pass

    def finished(self, chunk):
        return True

    def reference(self):
        return torch.zeros(1)

    def noise(self, chunk, step):
        return torch.zeros(1)

    def given_noise(self, chunk, step):
        return None

    def distance(self, chunk, step):
        return 4


def head_of(source: Source, in_flight: int = 5):
    arrived: queue.Queue = queue.Queue()
    head = Head(4, torch.float32, Pacer(in_flight), arrived.put, time.perf_counter)
    head.open(0, source)
    return head, arrived


def take(head: Head, arrived: queue.Queue, count: int) -> list:
    """The next entries; each lets the head ask for another."""
    found = []
    for _ in range(count):
        head.ask(always)
        found.append(arrived.get(timeout=5))
        head.entered(found[-1])
    return found


def always(stream, chunk):
    return True


def test_no_more_is_sampled_than_may_be_in_flight():
    source = Source(100)
    head, arrived = head_of(source, in_flight=3)
    assert [e.chunk for e in take(head, arrived, 3)] == [0, 1, 2]
    head.ask(always)
    time.sleep(0.05)
    assert source.asked == [0, 1, 2]
    head.done(0, 0, {0: 1.0, 1: 1.0, 2: 1.0})
    head.out(0, 0, 0.0)
    head.ask(always)
    assert [e.chunk for e in take(head, arrived, 1)] == [3]


def test_measured_times_set_the_pace():
    """Four steps of 1 and a last stage of 2: three in flight, however many the plan expected."""
    source = Source(100)
    head, arrived = head_of(source, in_flight=5)
    take(head, arrived, 5)
    for chunk in range(5):
        head.done(0, chunk, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0})
        head.out(0, chunk, 0.0)
    head.ask(always)
    assert [e.chunk for e in take(head, arrived, 3)] == [5, 6, 7]
    assert arrived.empty()


def test_nothing_is_sampled_before_the_first_cell_is_ready():
    source = Source(100)
    head, arrived = head_of(source)
    for _ in range(3):
        head.ask(lambda stream, chunk: chunk < 1)
    assert arrived.get(timeout=5).chunk == 0
    time.sleep(0.05)
    assert source.asked == [0]


def test_epochs_references_and_the_end():
    source = Source(5)
    head, arrived = head_of(source, in_flight=9)
    head.ask(always)
    entries = take(head, arrived, 6)
    assert [e.epoch for e in entries[:5]] == [0, 0, 0, 3, 3]
    assert ["text" in e.tensors for e in entries[:5]] == [True, False, False, True, False]
    assert [bool(e.reference) for e in entries[:5]] == [True, False, False, False, False]
    accepted = [float(e.companion["meta"][2]) for e in entries[:5]]
    assert accepted[3] == 7.0
    assert all(math.isnan(at) for i, at in enumerate(accepted) if i != 3)
    assert entries[5].tensors is None


def test_a_source_that_breaks_is_heard_of():
    class Broken(Source):
        def chunk(self, chunk):
            raise RuntimeError("the microphone fell into the sea")

    head, arrived = head_of(Broken(1))
    head.ask(always)
    assert "the sea" in str(arrived.get(timeout=5))
