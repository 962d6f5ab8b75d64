"""How far behind the newest a live source is read: as little as its way allows.

Two clocks never agree for long, and a way through a network changes. When there has been more in reserve for a while
than the way varies by, some is skipped; when something was missing each time, the reader falls back by it.
"""

from __future__ import annotations

from collections import deque

LATELY = 8
"""Chunks over which a reserve is watched."""


class Reserve:
    """What has come and was not read yet, behind each of the latest chunks, in any unit of time.

    Args:
        aim: of it there is to be where nothing varies.
        spare: more than this, each time lately, is too much.
    """

    def __init__(self, aim: float, spare: float):
        self.aim, self._spare = aim, spare
        self._lately: deque[float] = deque(maxlen=LATELY)

    def note(self, left: float) -> None:
        """A chunk was read; so much is left, below 0 where something was missing."""
        self._lately.append(left)

    def move(self) -> float:
        """By how much the reader is to go ahead now, below 0: to fall back; what was noted is of before then."""
        if len(self._lately) < LATELY:
            return 0
        least, most = min(self._lately), max(self._lately)
        if least <= self._spare and most >= 0:
            return 0
        self.clear()
        return (least if least > self._spare else most) - self.aim

    def clear(self) -> None:
        """It is read from elsewhere on: nothing is known of the way there."""
        self._lately.clear()
