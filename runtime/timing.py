"""How long passes take: by the device's own clock, told when they are over.

A device works behind the program, so the moment at which a call returns says nothing. Every pass is enclosed by two
points of the device's queue, and what lies between them is read when the second one has been reached.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from devices import Device, Span
from runtime.trace import Trace

AHEAD = 2
"""Passes that a worker gives its device before the first of them is over: one that runs and one that follows it without
a gap. With more of them, a chunk that comes meanwhile and is more urgent would wait for all."""


class _Begun(NamedTuple):
    """A pass that the device was given; `given` is when, on the trace's clock."""

    stage: str
    chunk: int
    given: float
    span: Span


class Timer:
    """Times what is given to one queue of a device. Threads that give to that queue may share it.

    Args:
        device: whose queue it is.
        trace: told how long everything took.
    """

    def __init__(self, device: Device, trace: Trace):
        self.device, self.trace = device, trace
        self._begun: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        self._under_way: list[_Begun] = []
        self._lock = threading.Lock()
        self._over = trace.clock()
        """When the latest pass was over, on the trace's clock."""
        self._thread: threading.Thread | None = None

    @contextmanager
    def __call__(self, stage: str, chunk: int) -> Iterator[Span]:
        """Time the enclosed work as `stage` of `chunk`; gives what will be known of it."""
        given, span = self.trace.clock(), Span(self.device)
        yield span
        begun = _Begun(stage, chunk, given, span.end())
        if self.device.immediate:
            self.trace.add(stage, chunk, given, span.seconds)
            return
        with self._lock:
            self._under_way.append(begun)
        self._begun.put(begun)

    @property
    def room(self) -> bool:
        """Whether the device may be given another pass."""
        return len(self._under_way) < AHEAD

    def doing(self) -> tuple[str, int, float] | None:
        """Stage and chunk of the oldest pass that the device is at, and when it was given that."""
        with self._lock:
            return self._under_way[0][:3] if self._under_way else None

    def start(self, then: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Tell of passes as they end, from a thread of its own.

        Args:
            then: called after each of them.
            failed: called with what the device raises, which is through with no pass any more.
        """
        if not self.device.immediate:
            self._thread = threading.Thread(target=self._follow, args=(then, failed), name="timer", daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Tell of all passes, waiting for those that are not over; where there is no thread."""
        while not self._begun.empty():
            self._end(self._begun.get())

    def close(self) -> None:
        """End the thread once all is told."""
        if self._thread:
            self._begun.put(None)
            self._thread.join()

    def _follow(self, then: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        try:
            self.device.use()
            while (begun := self._begun.get()) is not None:
                self._end(begun)
                then()
        except Exception as error:  # after such a fault a device takes no more work, of any stream
            failed(error)

    def _end(self, begun: _Begun) -> None:
        took = begun.span.seconds
        # It began when it was given, or, where the queue was not empty, when the one before it was over.
        start = max(begun.given, self._over)
        self._over = start + took
        self.trace.add(begun.stage, begun.chunk, start, took)
        with self._lock:
            self._under_way.remove(begun)
