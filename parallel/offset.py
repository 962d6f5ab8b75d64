"""How far the clocks of a channel's two ends are apart, measured by the signs of life that travel between them.

Clocks of two hosts may differ by hours, and run at rates that differ by a few millionths. So every sign of life carries
a stamp, three moments in seconds: when the last one was sent that came from the other end (its clock), when that came
and when this one leaves (both this end's clock). With the moment at which the stamp itself comes there are four, and
they give the offset with a bound of its error, as in the Network Time Protocol (RFC 5905, section 8).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan
from typing import NamedTuple

from parallel.message import Message

Stamp = tuple[float, float, float]
DRIFT = 15e-6
"""Seconds that the offset may change by in a second (PHI of RFC 5905): so good measurements give way to fresh ones."""


class _Measurement(NamedTuple):
    """The offset by one round trip: when that began by this end's clock, and the seconds it took on the way."""

    asked: float
    trip: float
    seconds: float

    def bound(self, now: float) -> float:
        """Largest error by now: one way may have taken all of the trip, and clocks drift, that of `now` too."""
        return max(self.trip, 0.0) / 2 + DRIFT / (1 - DRIFT) * (now - self.asked)


class Offset:
    """One end's view. One thread may stamp while another hears.

    Args:
        clock: of this end, in seconds; never goes back.

    Attributes:
        seconds: to be added to a moment of the other end's clock, to have it by this end's. Exactly 0 as long as the
            clocks may be the same: so between processes of one host nothing is changed.
        bound: largest error of `seconds`, when it was last measured; infinite before.
    """

    def __init__(self, clock: Callable[[], float]):
        self.seconds, self.bound = 0.0, inf
        self._clock = clock
        self._heard = nan, nan  # when the last stamp that came was sent, and when it came
        self._best: _Measurement | None = None

    def stamp(self) -> Stamp:
        """What a sign of life carries that leaves now."""
        return (*self._heard, self._clock())

    def hear(self, stamp: Stamp, came: float) -> None:
        """Learn from a stamp of the other end.

        Args:
            came: when it came, by this end's clock.
        """
        asked, heard, said = stamp
        self._heard = said, came
        if isnan(asked):
            return  # the other end has heard nothing yet
        trip, seconds = (came - asked) - (said - heard), ((asked - heard) + (came - said)) / 2
        measurement = _Measurement(asked, trip, seconds)
        if self._best is None or measurement.bound(came) <= self._best.bound(came):
            self._best = measurement
        bound = self._best.bound(came)
        self.seconds = self._best.seconds if abs(self._best.seconds) > bound else 0.0
        self.bound = bound + abs(self._best.seconds - self.seconds)

    def correct(self, message: Message, at: float) -> None:
        """Turn the moments of a message from the other end into moments of this end's clock.

        Args:
            at: when it came, which is never before it was sent.
        """
        if message.sent:
            message.sent = min(message.sent + self.seconds, at)
        message.moments = {name: moment + self.seconds for name, moment in message.moments.items()}
