"""Live sound that is never waited for: what has not come when a chunk is sampled is silence, and too late afterwards.

A microphone's samples have positions on a line of their own, so that what was lost on the way leaves a gap. A stream
reads along that line at its own pace, a little behind the newest sample (`stages.sources.reserve`). Speech that is to
be spoken, by contrast, is held in full until it is, since it may be made faster than it is heard.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from stages.sources.audio import NOTHING, RATE
from stages.sources.reserve import Reserve

RESERVE = RATE // 50
"""Samples between what is read last and the newest one, where nothing varies: 20 ms."""
SPARE = RATE // 16
"""More in reserve than this, each time lately, is skipped."""
HELD = 4 * RATE
"""Samples of a microphone that are held."""
SPEECH_S = 60.0
"""Seconds of speech that are held."""


class Microphone:
    """What one was heard to say, by position. One thread gives, another reads; whoever uses it holds a lock.

    Attributes:
        silent: samples that were read before they had come.
        late: samples that came after that.
        skipped: samples that were left out so that delay does not grow.
    """

    def __init__(self):
        self._ring = np.zeros(HELD, np.float32)
        self._there = np.zeros(HELD, bool)
        self._next: int | None = None
        """Position that is read next; None: nothing was read since the first sample came."""
        self._newest: int | None = None
        """Behind the newest sample."""
        self._reserve = Reserve(RESERVE, SPARE)
        self.silent = self.late = self.skipped = 0

    def give(self, at: int, samples: np.ndarray) -> None:
        """Samples [n] in [-1, 1] from position `at` on, in any order."""
        end = at + len(samples)
        if self._newest is not None and not -RATE < end - self._newest < HELD // 2:
            self._newest = None  # another microphone, or one that was away: begin anew
            self._restart()
            self._there[:] = False
        if self._newest is not None and at > self._newest:
            # What was there a whole ring ago is not what is missing now.
            self._there[np.arange(self._newest, at) % HELD] = False
        self._newest = end if self._newest is None else max(self._newest, end)
        if self._next is not None:
            missed = min(len(samples), max(0, self._next - at))
            self.late += missed
            at, samples = at + missed, samples[missed:]
        old = max(0, self._newest - HELD - at)
        where = np.arange(at + old, end) % HELD
        self._ring[where], self._there[where] = samples[old:], True

    def begin(self, skip: int = 0) -> None:
        """A chunk is about to be read: keep the reserve as small as the way allows.

        Args:
            skip: samples by which it is read later than the one before it would have it: what was heard meanwhile is
                left out, or it would be heard later for good.
        """
        if self._next is None or self._newest is None:
            return
        self._next += skip
        self.skipped += skip
        moved = self._reserve.move()
        self._next += moved
        self.skipped += max(0, moved)

    def read(self, count: int) -> np.ndarray:
        """The next samples, float32 [count]; silence where none has come."""
        if self._newest is None:
            return np.zeros(count, np.float32)
        if self._next is not None and self._newest - self._next > HELD:
            self._restart()  # nobody has read for so long that it is not held any more
        if self._next is None:
            self._next = self._newest - count - RESERVE
        positions = np.arange(self._next, self._next + count)
        where = positions % HELD
        there = self._there[where] & (positions >= self._newest - HELD) & (positions < self._newest)
        found = np.where(there, self._ring[where], np.float32(0))
        self.silent += int(count - there.sum())
        self._there[where] = False
        self._next += count
        return found

    def drop(self) -> None:
        """What was heard until now is heard by nobody: read on behind the newest sample."""
        if self._next is not None:
            self._restart()

    def _restart(self) -> None:
        """Read on behind the newest sample."""
        self._next = None
        self._reserve.clear()

    def end(self) -> None:
        """A chunk was read."""
        if self._next is not None:
            # One that has fallen silent for long tells nothing of the way.
            reserve = self._newest - self._next
            if reserve > -2 * RATE:
                self._reserve.note(reserve)


class Speech:
    """Sound to be spoken, in the order in which it came."""

    def __init__(self):
        self._parts: deque[np.ndarray] = deque()
        self.held = 0
        """Samples."""

    def give(self, samples: np.ndarray) -> bool:
        """Add samples [n]; False: so much is not held, and none was added."""
        if self.held + len(samples) > SPEECH_S * RATE:
            return False
        self._parts.append(samples)
        self.held += len(samples)
        return True

    def read(self, count: int) -> np.ndarray:
        """Up to `count` samples, float32."""
        found = []
        while count and self._parts:
            part = self._parts.popleft()
            if len(part) > count:
                self._parts.appendleft(part[count:])
                part = part[:count]
            found.append(part)
            count -= len(part)
            self.held -= len(part)
        return np.concatenate(found) if found else NOTHING

    def clear(self) -> None:
        """Nothing of it is to be spoken."""
        self._parts.clear()
        self.held = 0
