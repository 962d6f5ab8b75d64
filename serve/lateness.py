"""How many of a model's latest chunks were late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_S = 5.0
"""How far back it looks."""
SHARE, SEVERAL = 0.02, 3
"""Of late chunks, beyond which a model is late, if there are so many: one alone tells of nothing."""
LEAST_S = 0.02
"""By how much a chunk is late at least: less is less than a frame."""
STEP_S = 0.25
"""Chunks are counted together for so long: what is kept does not grow with the number of sessions."""


class Lateness:
    """The share of late chunks among those of the last seconds.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._counts: deque[list[float]] = deque(maxlen=round(WINDOW_S / STEP_S) + 2)
        """[since when, chunks, late ones], oldest first."""

    def add(self, seconds: float) -> None:
        """A chunk was so late; 0: it was not."""
        now = self._clock()
        if not self._counts or now - self._counts[-1][0] >= STEP_S:
            self._counts.append([now, 0, 0])
        self._counts[-1][1] += 1
        self._counts[-1][2] += seconds > LEAST_S

    @property
    def late(self) -> bool:
        """Whether too many of the last WINDOW_S seconds were."""
        since = self._clock() - WINDOW_S
        while self._counts and self._counts[0][0] < since:
            self._counts.popleft()
        chunks = sum(count for _, count, _ in self._counts)
        late = sum(late for _, _, late in self._counts)
        return late >= SEVERAL and late > SHARE * chunks
