"""How much a TCP connection carries: it tells nobody, so what piles up in front of it has to say it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from stages.sinks.coded import LEAST_BITS

LAG_S, FINE_S = 0.3, 0.1
"""A line that is behind by more is too slow for what it is given; by less, it may have more."""
STEP_S = 0.5
"""A lower rate shows in the queue only after this."""
DOWN, UP = 0.7, 1.08
"""Factor of a step down, and of a second of recovery."""
FLOOR = LEAST_BITS
"""Bits per second below which pictures are left out instead: encoders go no lower."""
WIDE = 1.5
"""Of the floor: a line that takes so much has no limit any more, where it was given less when it was behind."""
WORTH = 1.04
"""A rate that has risen by less is not told."""


class Wish(NamedTuple):
    """What is asked of a session: bits per second (None: whatever it likes), and every how manieth picture."""

    bits_per_second: int | None
    every: int = 1


class TcpRate:
    """Follows one connection by how far its queue is behind.

    Attributes:
        asked: what was asked last.
    """

    def __init__(self):
        self.asked = Wish(None)
        self._given: deque[tuple[float, int]] = deque()
        self._limit: float | None = None
        self._every = 1
        self._free = 0.0
        self._cut = self._looked = float("-inf")

    def given(self, now: float, size: int) -> None:
        """`size` bytes were given to the connection's queue."""
        self._given.append((now, size))
        while self._given[0][0] < now - 1:
            self._given.popleft()

    def look(self, now: float, lag_s: float) -> Wish | None:
        """What is to be asked from now on; None: what was asked last.

        Args:
            now: seconds, monotonic.
            lag_s: since when the oldest of what is not sent yet has been waiting.
        """
        passed, self._looked = now - self._looked, now
        if lag_s > LAG_S:
            if now - self._cut >= STEP_S:
                self._lower(now)
        elif self._limit is not None and lag_s < FINE_S:
            self._raise(passed)
        return self._tell()

    def _lower(self, now: float) -> None:
        measured = 8.0 * sum(size for _, size in self._given)
        if self._limit is None:
            self._free = max(measured, WIDE * FLOOR)
        elif self._limit <= FLOOR:
            self._every = 2
        self._limit = max(FLOOR, DOWN * min(self._limit or measured, measured))
        self._cut = now

    def _raise(self, seconds: float) -> None:
        self._limit *= UP**seconds
        if self._limit >= 2 * FLOOR:
            self._every = 1
        if self._limit >= self._free:
            self._limit, self._every = None, 1

    def _tell(self) -> Wish | None:
        rate = Wish(None if self._limit is None else round(self._limit), self._every)
        last = self.asked.bits_per_second
        small = rate.bits_per_second is not None and last is not None and last <= rate.bits_per_second < last * WORTH
        if rate == self.asked or (small and rate.every == self.asked.every):
            return None
        self.asked = rate
        return rate
