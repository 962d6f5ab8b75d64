"""Turns on a device: one holder at a time, the most urgent who waits goes first.

A worker's loop and the threads of its stages share one device. Each takes a turn for one pass, so passes do not slow
each other down and their times mean something; a stage goes before the next pass of the loop, as the planner counts it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

STAGE, CELL = 0, 1
"""Urgencies: a smaller one goes first. What a stage does lets a chunk leave, so it goes before any cell."""


class Turn:
    """A lock with urgency; equals go in the order in which they asked. Not reentrant."""

    def __init__(self):
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        self._numbers = count()
        self._held = False

    @contextmanager
    def __call__(self, urgency: int) -> Iterator[None]:
        """Hold the device while the context is open."""
        with self._changed:
            ticket = urgency, next(self._numbers)
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: not self._held and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()
