"""When a stream is cut, so that a loss costs no more work than it may."""

from __future__ import annotations

from collections.abc import Callable

UNDER_WAY = 2
"""Cuts of a stream that are made at a time, at most: memory holds these and the newest whole one."""


class Cadence:
    """Of one stream.

    Args:
        recover_s: seconds of work that a loss may cost.
        period: seconds from one chunk of the stream to the next, as measured lately; None: nothing was measured yet.
        under_way: cuts of the stream that are not whole yet.
        first: the chunk that it began with, or goes on with.
    """

    def __init__(
        self, recover_s: float, period: Callable[[], float | None], under_way: Callable[[], int], first: int = 0
    ):
        self.recover_s, self._period, self._under_way = recover_s, period, under_way
        self._last, self._at_once = first, False

    def at_once(self) -> None:
        """The next chunk is due, however few came since the last cut."""
        self._at_once = True

    def due(self, chunk: int) -> bool:
        """Whether a cut is to be made before `chunk`."""
        if chunk <= self._last or self._under_way() >= UNDER_WAY:
            return False
        period = self._period()
        every = 1 if self._at_once else period and max(1, int(self.recover_s / period))
        return bool(every) and chunk - self._last >= every

    def made(self, chunk: int) -> None:
        """A cut was begun before `chunk`, for whatever reason."""
        self._last, self._at_once = chunk, False
