"""A device of host memory that works as an accelerator does: what is given to a queue is done when it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import devices
from devices import Queue, kinds
from devices.processor import Processor


class Works(Queue):
    """A queue: work that was given, in order, and how much of it is done."""

    def __init__(self, device: Late):
        self.device, self.given, self.done = device, [], 0
        self._lock = threading.Lock()

    def use(self) -> None:
        self.device.note("use")
        self.device.current.queue = self

    @contextmanager
    def after(self, mark: Mark | None, *used: Tensor) -> Iterator[None]:
        before, self.device.current.queue = self.device.own(), self
        self.device.follow(mark)
        yield
        self.device.mark().wait()
        self.device.current.queue = before

    def give(self, work: Callable[[], None], *used: Tensor) -> Mark:
        before, behind, self.device.current.queue = self.device.own(), self.device.mark(), self
        self.device.follow(behind)
        work()
        self.device.current.queue = before
        return Mark(self)

    def close(self) -> None:
        self.device.note("close")

    def reach(self, count: int) -> None:
        """Do what was given, up to the first `count`."""
        with self._lock:
            while self.done < count:
                self.given[self.done]()
                self.done += 1


class Mark:
    """A point in a queue."""

    def __init__(self, queue: Works):
        self.queue, self.count = queue, len(queue.given)

    def wait(self) -> None:
        self.queue.device.note("wait")
        self.queue.reach(self.count)

    def reached(self) -> bool:
        return self.queue.done >= self.count


class Late(Processor):
    """Copies are done when they are given. So between queues an order that nobody asked for shows as a tensor that is
    not there yet; within one queue nothing shows. Time is counted in works.

    Attributes:
        notes: what was asked for, and by which thread, in order.
        pins: addresses of pinned memory.
    """

    immediate = False

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.notes: list[tuple[str, str]] = []
        self.pins: set[int] = set()
        self.current = threading.local()

    def note(self, what: str) -> None:
        self.notes.append((what, threading.current_thread().name))

    def own(self) -> Works:
        """The calling thread's queue."""
        if not hasattr(self.current, "queue"):
            self.current.queue = Works(self)
        return self.current.queue

    def later(self, work: Callable[[], object]) -> None:
        """Give work to the calling thread's queue."""
        self.own().given.append(work)

    def queue(self, passes: bool = False) -> Works:
        return Works(self)

    def mark(self, *used: Tensor) -> Mark:
        return Mark(self.own())

    def follow(self, mark: Mark | None, *used: Tensor) -> None:
        # What is given to this thread's queue from now on is done at once, so it has to be there now.
        if mark is not None:
            mark.queue.reach(mark.count)
        self.note("follow")

    def synchronize(self) -> None:
        self.mark().wait()

    def moment(self) -> Moment:
        return Moment(self)

    def over(self, moment: Moment) -> bool:
        return moment.mark.reached()

    def seconds(self, start: Moment, end: Moment) -> float:
        end.mark.wait()
        return end.at - start.at

    def pinned(self, size: int) -> Tensor:
        memory = torch.empty(size, dtype=torch.uint8)
        self.pins.add(memory.data_ptr())
        return memory

    def where(self) -> str:
        return "a card"


class Moment:
    """When a queue came to a point."""

    def __init__(self, device: Late):
        device.later(self._come)
        self.mark, self.at = device.mark(), 0.0

    def _come(self) -> None:
        self.at = float(self.mark.queue.done)


def install() -> Late:
    """From now on the processor is such a device in this process, which is a test's own."""
    devices.KINDS["cpu"] = Late
    kinds._MADE.clear()
    return devices.of("cpu")
