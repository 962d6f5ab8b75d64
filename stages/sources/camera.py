"""A camera's pictures, which are never waited for: a chunk shows what had come when it was sampled.

They come with the time at which each was taken, on the camera's own clock. A stream reads along that time at its own
rate: a video frame shows the newest picture that was taken by its own moment. Where several came for one frame the
newest is shown, and where none did the one before it, held (`stages.sources.film`).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from stages.sources.reserve import Reserve

HELD_S, MOST, MOST_BYTES = 4.0, 128, 1 << 24
"""What is held of a camera at most: seconds, pictures, bytes."""
BACK_S = 1.0
"""A time that lies before the newest by more is another camera's, or another clock's."""
GONE_S = 2.0
"""One that has sent nothing for longer tells nothing of its way."""


class Shot(NamedTuple):
    """A picture that has come.

    Attributes:
        at: when it was taken, in seconds of the camera's clock.
        jpeg: what it shows.
        came: when it came, in seconds of this process's clock.
    """

    at: float
    jpeg: bytes
    came: float


class Camera:
    """What one has seen. One thread gives, another reads; whoever uses it holds a lock.

    Args:
        fps: frames a second that are read.

    Attributes:
        passed: pictures that no frame showed, since newer ones had come or they were too late.
    """

    def __init__(self, fps: int):
        self._each = 1 / fps
        self._shots: deque[Shot] = deque()
        """That no frame showed yet, by time."""
        self._bytes = 0
        self._newest: float | None = None
        self._next: float | None = None
        """The moment of the frame that is read next; None: nothing was read since the first picture came."""
        # Half a frame from either neighbour: a picture that is taken once a frame is then shown once.
        self._reserve = Reserve(self._each / 2, 1.5 * self._each)
        self.passed = 0

    def give(self, shot: Shot) -> None:
        """A picture came."""
        if self._newest is not None and not -BACK_S < shot.at - self._newest < GONE_S:
            self.drop()  # another camera, or one that was off: begin anew
            self._clear()
        elif self._newest is not None and shot.at <= self._newest:
            self.passed += 1
            return
        self._newest = shot.at
        self._shots.append(shot)
        self._bytes += len(shot.jpeg)
        while len(self._shots) > MOST or self._bytes > MOST_BYTES or self._shots[0].at < shot.at - HELD_S:
            self._pop()
            self.passed += 1

    def begin(self, skip_s: float = 0.0) -> None:
        """A chunk is about to be read.

        Args:
            skip_s: by how much later it is read than the one before it would have it.
        """
        if self._next is not None:
            self._next += skip_s + self._reserve.move()

    def read(self, count: int) -> list[Shot | None]:
        """For each of the next `count` frames the picture that it is the first to show; None: it shows none."""
        if self._next is None and self._newest is not None:
            self._next = self._newest - (count - 1) * self._each - self._reserve.aim
        if self._next is None:
            return [None] * count
        found = [self._until(self._next + frame * self._each) for frame in range(count)]
        self._next += count * self._each
        return found

    def _until(self, moment: float) -> Shot | None:
        """The newest picture that was taken by then and was not shown yet; None: there is none."""
        found = None
        while self._shots and self._shots[0].at <= moment:
            self.passed += found is not None
            found = self._pop()
        return found

    def end(self) -> None:
        """A chunk was read."""
        if self._next is not None:
            reserve = self._newest - (self._next - self._each)
            if reserve > -GONE_S:
                self._reserve.note(reserve)

    def drop(self) -> None:
        """Nothing was read for a while: read on at the newest picture."""
        self._next = None
        self._reserve.clear()

    def _clear(self) -> None:
        self.passed += len(self._shots)
        self._shots.clear()
        self._bytes = 0

    def _pop(self) -> Shot:
        shot = self._shots.popleft()
        self._bytes -= len(shot.jpeg)
        return shot
