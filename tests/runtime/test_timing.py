"""Times are the device's, however early the calls return that give it work."""

from __future__ import annotations

import queue
import threading
from collections import deque

import pytest
import torch

from devices.processor import Processor
from parallel.message import Message
from runtime.timing import AHEAD, Timer
from runtime.trace import Trace
from tests.patience import PATIENT_S


class Late(Processor):
    """A device that is through with what it was given when it is told so; a pass takes 5 s of its own clock."""

    immediate = False

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.moments: deque[Moment] = deque()
        self.clock = 0.0

    def moment(self) -> Moment:
        self.moments.append(Moment())
        return self.moments[-1]

    def work(self) -> None:
        """Do what was given up to the next two moments: a pass."""
        for passed in (0.0, 5.0):
            self.clock += passed
            moment = self.moments.popleft()
            moment.at = self.clock
            moment.come.set()

    def fail(self) -> None:
        """What was given is never done: CUDA tells whoever waits for it."""
        for moment in self.moments:
            moment.failed = True
            moment.come.set()

    def over(self, moment: Moment) -> bool:
        return moment.come.is_set()

    def seconds(self, start: Moment, end: Moment) -> float:
        assert end.come.wait(PATIENT_S)
        if end.failed:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return end.at - start.at


class Moment:
    """One that has not come yet."""

    def __init__(self):
        self.come, self.at, self.failed = threading.Event(), 0.0, False


@pytest.fixture
def timed():
    """(device, timer, its trace, a semaphore that counts passes that were told); the program's clock stands at 100."""
    device, trace = Late(), Trace(keep="recent", clock=lambda: 100.0)
    timer, told = Timer(device, trace), threading.Semaphore(0)
    timer.start(lambda failed: told.release())
    yield device, timer, trace, told
    timer.close()


def spans(trace: Trace) -> list[tuple]:
    return [tuple(span) for span in trace._kept.unpack(trace.pack())]


def test_passes_take_their_time_one_after_the_other(timed):
    device, timer, trace, told = timed
    for chunk in range(3):
        with timer("step0", chunk):
            pass
    assert not spans(trace), "nothing is known before it is over"
    for _ in range(3):
        device.work()
    for _ in range(3):
        assert told.acquire(timeout=PATIENT_S)
    assert spans(trace) == [("step0", chunk, 100.0 + 5 * chunk, 5.0) for chunk in range(3)]


def test_a_worker_is_never_more_than_two_passes_ahead_of_its_device(timed):
    device, timer, _, told = timed
    for chunk in range(AHEAD):
        assert timer.room
        with timer("step0", chunk):
            pass
    assert not timer.room and timer.doing() == ("step0", 0, 100.0)
    device.work()
    assert told.acquire(timeout=PATIENT_S)
    assert timer.room and timer.doing() == ("step0", 1, 100.0)
    device.work()
    assert told.acquire(timeout=PATIENT_S)
    assert timer.doing() is None


def test_a_message_has_the_devices_times_once_it_is_settled(timed):
    device, timer, _, _ = timed
    with timer("step0", 0) as span:
        message = Message("step", times={3: 1.0}, spans=[(3, span), (3, span), (4, span)])
    assert message.times == {3: 1.0}
    device.work()
    assert message.settle().times == {3: 11.0, 4: 5.0}
    assert message.settle().times == {3: 11.0, 4: 5.0}, "it is settled once"


def test_work_that_is_immediate_is_told_at_once():
    trace = Trace()
    timer = Timer(Processor(torch.device("cpu")), trace)
    with timer("step0", 0) as span:
        pass
    assert trace.stages["step0"].last == span.seconds
    assert timer.room and timer.doing() is None


def test_what_the_device_raises_is_told_and_holds_nobody():
    device, told = Late(), queue.SimpleQueue()
    timer = Timer(device, Trace())
    timer.start(told.put)
    for chunk in range(AHEAD):
        with timer("step0", chunk):
            pass
    device.fail()
    for _ in range(AHEAD):
        assert isinstance(told.get(timeout=PATIENT_S), torch.AcceleratorError)
    assert timer.room and timer.doing() is None
    timer.close()
