"""When the frames of a video are shown, and which of them a stream of another rate shows: exact rational arithmetic.

Frame k of the output is the input frame that is shown at k / fps seconds: the last one whose time is not later. So
input frames are shown as often as the rates demand: those of a slower input at least once each, those of a faster one
at most once; and the choice never drifts, since nothing is summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, Protocol, TypeVar

ROUNDS = Fraction(1, 400)
"""Seconds. A container whose clock ticks in less rounds times to it, and a time is then known to half a tick; one of
longer ticks counts frames by them, which is exact."""


class Timed(Protocol):
    """A decoded frame."""

    pts: int | None
    duration: int


Frame = TypeVar("Frame", bound=Timed)


class Shown(NamedTuple):
    """An input frame, and the output's frames that show it: numbers `first` up to `end`, without it."""

    frame: Timed
    first: int
    end: int


class Moments:
    """The times of one video's frames, in seconds since the first.

    Args:
        tick: seconds of the container's clock.
        each: seconds of a frame, where the container does not say it.
    """

    def __init__(self, tick: Fraction, each: Fraction):
        self._tick, self._each = tick, each
        self.slack = tick / 2 if tick <= ROUNDS else Fraction(0)
        """By how much earlier a frame may be due than its time says."""
        self._origin: Fraction | None = None
        self._last: Fraction | None = None
        self._lasts = Fraction(0)

    def of(self, frame: Timed) -> Fraction:
        """When the next frame is shown. One without a time follows the one before it at once, and so does one whose
        time lies before that: there the clock was set anew."""
        due = Fraction(0) if self._last is None else self._last + self._lasts
        if frame.pts is None:
            time = due
        else:
            stamp = frame.pts * self._tick
            if self._origin is None or (self._last is not None and stamp - self._origin <= self._last):
                self._origin = stamp - due
            time = stamp - self._origin
        self._last, self._lasts = time, frame.duration * self._tick if frame.duration else self._each
        return time

    @property
    def end(self) -> Fraction:
        """When the last frame so far is over."""
        return Fraction(0) if self._last is None else self._last + self._lasts


def shown(frames: Iterable[Frame], moments: Moments, fps: int) -> Iterator[Shown]:
    """Every input frame, with those of the output, at `fps` frames a second, that show it, which may be none."""
    held, first = None, 0
    for frame in frames:
        end = _until(moments.of(frame) - moments.slack, fps)
        if held is not None:
            yield Shown(held, first, max(first, end))
            first = max(first, end)
        held = frame
    if held is not None:
        yield Shown(held, first, max(first, _until(moments.end - moments.slack, fps)))


def _until(time: Fraction, fps: int) -> int:
    """How many of the output's frames are due before `time`."""
    return math.ceil(time * fps)
