"""Who is refused, in the log: a line for each kind now and then, with how many they were, whatever a storm of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_S = 10.0
"""Between two lines of one kind."""


class Refusals:
    """Counts who is refused, and says so.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def add(self, kind: str) -> None:
        """One more; kinds are few, and none of them a caller's."""
        now, count = self._clock(), self._unsaid.get(kind, 0) + 1
        if now - self._said_at.get(kind, -EVERY_S) < EVERY_S:
            self._unsaid[kind] = count
            return
        self._said_at[kind], self._unsaid[kind] = now, 0
        log.info("refused", extra={"kind": kind, "count": count})


refused = Refusals()
"""Of this process."""
