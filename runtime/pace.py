"""The clock of a stream that is driven live: it is sampled no faster than it is watched."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

DRIFT = 1e-3
"""How much faster than this clock that of a sound card may be: what comes faster would be held back more and more."""
LATELY = 8
"""Chunks whose slack is watched: the longest way of these is the one that the next is allowed."""
LEAST = 0.01
"""Seconds by which a chunk is put off, at least: less would not be noticed."""


class Pace:
    """When the next chunk of one stream is due: as long after the one before as that one is watched.

    What is late by less than a chunk catches up. What is late by more stays late: who drives would otherwise see the
    stream run through the time that was lost, with what is pressed now.

    Args:
        wait: waits so many seconds, or fewer where the stream is stopped meanwhile.
        clock: seconds, monotonic.
    """

    def __init__(self, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic):
        self._wait, self._clock = wait, clock
        self._due: float | None = None
        self._lock = threading.Lock()
        self._slacks: deque[float] = deque(maxlen=LATELY)
        self._later = 0.0
        """By how much the next chunk is to be put off."""

    def slack(self, seconds: float) -> None:
        """A chunk was there so many seconds before it had to be; below 0, after that. From any thread.

        What every chunk lately had to spare is waited out before the next is sampled: so it enters as late as the
        longest way of these allows, and shows what was heard and pressed until then.
        """
        with self._lock:
            self._slacks.append(seconds)
            if len(self._slacks) == LATELY and (spare := min(self._slacks)) > LEAST:
                self._later += spare
                self._slacks.clear()

    def hold(self) -> bool:
        """Wait until the next chunk is due; returns whether it had to be waited for."""
        with self._lock:
            later, self._later = self._later, 0.0
        if self._due is not None:
            self._due += later
        early = 0.0 if self._due is None else self._due - self._clock()
        if early > 0:
            self._wait(early)
        return early > 0

    def sampled(self, seconds: float) -> None:
        """A chunk was sampled that is watched for so many seconds. With the first one the clock begins."""
        now = self._clock()
        self._due = max(now, (now if self._due is None else self._due) + seconds * (1 - DRIFT))
