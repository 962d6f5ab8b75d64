"""What enters the pipeline, and when."""

import queue
import threading
import time

import pytest
import torch

from conf.errors import UserError
from conf.schema import StreamConfig
from parallel.pacing import OUTPUT, Pacer
from runtime.guard import Guard
from runtime.head import Entry, Head, Opened
from runtime.parts import Opening
from runtime.prompts import Prompts
from runtime.state import Keep
from tests.patience import PATIENT_S


class Source:
    """Conditioning that answers at once, for `chunks` chunks."""

    def __init__(self, chunks: int):
        self.chunks, self.asked = chunks, []

    def chunk(self, chunk):
        self.asked.append(chunk)
        return {} if chunk < self.chunks else None

    def states(self, chunk):
        return {"text": torch.zeros(1, 1, 4)} if chunk in (0, 3) else None

    def epoch(self, chunk):
        return 3 if chunk >= 3 else 0

    def frames(self, chunk):
        return 12 * chunk, 12

    def samples(self, chunk):
        return None

    live = False

    def hold(self, chunk):
        return False

    def accepted(self, chunk, entered):
        return 7.0 if chunk == 3 else None

    def due(self):
        return float(self.asked[-1]) if self.asked[-1] else None

    def close(self):
        pass

    def finished(self, chunk):
        return True

    def ended(self, chunk):
        pass

    def sink(self):
        return {"reference": torch.zeros(1)}

    def lasting(self):
        return {}

    def entering(self, chunk):
        return torch.zeros(1)

    def given_noises(self, chunk):
        return {}

    def timestep(self, chunk):
        return 0.0

    def distance(self, chunk, step):
        return 4


class Reasons:
    """A board that only hears why streams cannot go on."""

    def __init__(self):
        self.told = {}

    def refuse(self, stream, reason):
        self.told.setdefault(stream, reason)


def opening_of(make) -> Opening:
    return Opening(Prompts(StreamConfig()), threading.Event(), make, torch.device("cpu"))


def head_of(source: Source, in_flight: int = 5):
    """A head with one stream, open, and what its sampler delivers."""
    arrived: queue.Queue = queue.Queue()
    head = Head(4, torch.float32, Pacer(in_flight), arrived.put, time.perf_counter, Guard(Reasons(), "worker 0"))
    head.open(0, opening_of(lambda: source))
    head.begin(arrived.get(timeout=PATIENT_S))
    return head, arrived


def take(head: Head, arrived: queue.Queue, count: int) -> list:
    """The next entries; each lets the head ask for another."""
    found = []
    for _ in range(count):
        head.ask(always)
        found.append(arrived.get(timeout=PATIENT_S))
        head.entered(found[-1])
    return found


def always(stream, chunk):
    return True


def asked(head: Head) -> int:
    """Chunks that the stream was asked for; asking is done in the caller's thread."""
    return head.pacer.lanes[0].asked


def test_no_more_is_sampled_than_may_be_in_flight():
    source = Source(100)
    head, arrived = head_of(source, in_flight=3)
    assert [e.chunk for e in take(head, arrived, 3)] == [0, 1, 2]
    head.ask(always)
    assert asked(head) == 3
    head.done(0, 0, {0: 1.0, 1: 1.0, 2: 1.0})
    head.ask(always)
    assert [e.chunk for e in take(head, arrived, 1)] == [3]


def test_measured_times_set_the_pace():
    """Four steps of 1 and a last stage of 2: three in flight, however many the plan expected."""
    source = Source(100)
    head, arrived = head_of(source, in_flight=5)
    take(head, arrived, 5)
    for chunk in range(5):
        head.done(0, chunk, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0})
        head.out(0, chunk, {OUTPUT: 0.5})
    head.ask(always)
    assert [e.chunk for e in take(head, arrived, 3)] == [5, 6, 7]
    head.ask(always)
    assert asked(head) == 8


def test_nothing_is_sampled_before_the_first_cell_is_ready():
    source = Source(100)
    head, arrived = head_of(source)
    for _ in range(3):
        head.ask(lambda stream, chunk: chunk < 1)
    assert arrived.get(timeout=PATIENT_S).chunk == 0
    assert asked(head) == 1


def test_epochs_references_and_the_end():
    source = Source(5)
    head, arrived = head_of(source, in_flight=9)
    head.ask(always)
    entries = take(head, arrived, 6)
    assert [e.epoch for e in entries[:5]] == [0, 0, 0, 3, 3]
    assert [bool(e.states) for e in entries[:5]] == [True, False, False, True, False]
    assert [bool(e.sink) for e in entries[:5]] == [True, False, False, False, False]
    assert [e.moments.get("accepted") for e in entries[:5]] == [None, None, None, 7.0, None]
    assert all("entered" in e.moments for e in entries[:5])
    assert [e.moments.get("due") for e in entries[:5]] == [None, 1.0, 2.0, 3.0, 4.0]
    assert entries[5].tensors is None


@pytest.mark.parametrize("error", [RuntimeError("the microphone fell into the sea"), UserError("a", "is b", "use c")])
def test_a_source_that_breaks_ends_its_stream_with_the_reason(error):
    class Broken(Source):
        closed = False

        def chunk(self, chunk):
            if chunk == 2:
                raise error
            return super().chunk(chunk)

        def close(self):
            self.closed = True

    source = Broken(9)
    head, arrived = head_of(source)
    entries = take(head, arrived, 3)
    assert [(e.chunk, e.tensors is None) for e in entries] == [(0, False), (1, False), (2, True)]
    assert source.closed
    assert head.guard.hollow == {0}
    reason = head.guard.board.told[0]
    assert reason.kind == type(error).__name__
    assert reason.where == "worker 0, sampling chunk 2"


def test_a_stream_that_cannot_be_opened_ends_before_it_begins():
    def make():
        raise MemoryError("no room for the encoder")

    arrived: queue.Queue = queue.Queue()
    head = Head(4, torch.float32, Pacer(3), arrived.put, time.perf_counter, Guard(Reasons(), "worker 0"))
    head.open(0, opening_of(make))
    opened = arrived.get(timeout=PATIENT_S)
    assert opened == Opened(0, failed=True)
    head.begin(opened)
    head.entered(Entry(0, opened.first))
    assert head.over(0)
    assert head.guard.board.told[0].kind == "MemoryError"
    assert not head.samplers and head.pacer.in_flight == 0


def test_a_stream_that_fails_between_opening_and_its_first_chunk_lets_go_of_its_sources(tmp_path):
    """As by a state that cannot be read: it has ended before it began, and its thread with it."""

    class Closing(Source):
        closed = False

        def close(self):
            self.closed = True

    source, arrived = Closing(9), queue.Queue()
    head = Head(4, torch.float32, Pacer(3), arrived.put, time.perf_counter, Guard(Reasons(), "worker 0"))
    head.open(0, opening_of(lambda: source), Keep(str(tmp_path), {}, resume=str(tmp_path / "nowhere"), first=4))
    assert arrived.get(timeout=PATIENT_S) == Opened(0, first=4, failed=True)
    head.samplers[0].join(timeout=PATIENT_S)
    assert source.closed and not head.samplers[0].is_alive()
    assert head.guard.board.told[0].kind == "FileNotFoundError"


def test_opening_holds_nobody_up():
    """While one stream's encoder takes its time, another one is sampled."""
    gate, arrived = threading.Event(), queue.Queue()
    head = Head(4, torch.float32, Pacer(3), arrived.put, time.perf_counter, Guard(Reasons(), "worker 0"))

    def slow():
        assert gate.wait(PATIENT_S)
        return Source(9)

    head.open(0, opening_of(slow))
    head.open(1, opening_of(lambda: Source(9)))
    opened = arrived.get(timeout=PATIENT_S)
    assert opened.stream == 1
    head.begin(opened)
    assert [e.stream for e in take(head, arrived, 3)] == [1, 1, 1]
    gate.set()
    assert arrived.get(timeout=PATIENT_S).stream == 0
    head.close()


def test_a_silent_source_hides_no_stuck_stream():
    """What is waited for is judged stream by stream."""
    now = [0.0]
    gate, arrived = threading.Event(), queue.Queue()

    class Silent(Source):
        live = True

        def chunk(self, chunk):
            assert gate.wait(PATIENT_S)
            return None

    head = Head(4, torch.float32, Pacer(4), arrived.put, lambda: now[0], Guard(Reasons(), "worker 0"))
    head.open(0, opening_of(lambda: Silent(9)))
    head.begin(arrived.get(timeout=PATIENT_S))
    head.ask(always)
    head.open(1, opening_of(lambda: Source(9)))
    head.begin(arrived.get(timeout=PATIENT_S))
    head.ask(lambda stream, chunk: stream == 1)
    head.entered(arrived.get(timeout=PATIENT_S))
    now[0] = 59.0
    assert not head.overdue(60.0)
    now[0] = 61.0
    assert head.overdue(60.0) == {1: 0}
    head.out(1, 0, {OUTPUT: 0.1})
    assert not head.overdue(60.0)
    gate.set()
    head.close()


def test_steering_or_stopping_a_stream_that_is_gone_does_nothing():
    head, arrived = head_of(Source(0))
    head.ask(always)
    head.entered(arrived.get(timeout=PATIENT_S))
    assert head.over(0)
    head.steer(0, "too late", 0.0, 7)
    head.stop(0)
    head.saved(0)
