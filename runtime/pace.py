"""The clock of a stream that is driven live: it is sampled no faster than it is watched."""

from __future__ import annotations

import time
from collections.abc import Callable

DRIFT = 1e-3
"""How much faster than this clock that of a sound card may be: what comes faster would be held back more and more."""


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

    def hold(self) -> bool:
        """Wait until the next chunk is due; returns whether it had to be waited for."""
        early = 0.0 if self._due is None else self._due - self._clock()
        if early > 0:
            self._wait(early)
        return early > 0

    def sampled(self, seconds: float) -> None:
        """A chunk was sampled that is watched for so many seconds. With the first one the clock begins."""
        now = self._clock()
        self._due = max(now, (now if self._due is None else self._due) + seconds * (1 - DRIFT))
