"""How far loading is, for whoever waits."""

from __future__ import annotations

import time
from collections.abc import Callable

GB = 1e9
SHOWN_BYTES = 1e8
"""Parts of fewer bytes are there before a rate would say anything."""


class Loading:
    """What a process is loading. One thread tells, others may read.

    Args:
        told: called with this object when a new part begins.
        clock: seconds.
    """

    def __init__(
        self, told: Callable[[Loading], None] = lambda loading: None, clock: Callable[[], float] = time.monotonic
    ):
        self._told, self._clock = told, clock
        self._what, self._total, self._done, self._begun = "", 0, 0, clock()

    def __call__(self, what: str, total: int = 0) -> None:
        """The next part begins: what, and its bytes where they are known."""
        self._what, self._total, self._done, self._begun = what, total, 0, self._clock()
        self._told(self)

    def count(self, more: int) -> None:
        """So many bytes more of it are there."""
        self._done += more

    def __str__(self) -> str:
        if self._total < SHOWN_BYTES:
            return f"loading {self._what}"
        seconds = max(self._clock() - self._begun, 1e-3)
        rate = self._done / GB / seconds
        return f"loading {self._what}: {self._done / GB:.1f} of {self._total / GB:.1f} GB at {rate:.2f} GB/s"
