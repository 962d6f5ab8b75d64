"""Poses as lines say them, of every frame or of some, in a file or as they come.

    {"frame": 40, "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]], "intrinsics": [416, 416, 416, 240]}

Between two of them a camera goes as `stages.views.between` has it. Intrinsics that a line leaves out are those of the
line before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from conf.errors import UserError
from stages.controls import Row
from stages.inputs import Views
from stages.sources.backlog import Backlog
from stages.sources.lines import FileLines, LiveLines, check_order, entry_of
from stages.sources.poses import FILE, Poses
from stages.views import EXAMPLE, View, between, identity, lens, whole

AHEAD = 4096
"""Keyframes of a live stream that are kept for later."""
POSE, INTRINSICS = FORM = ("pose", "intrinsics")
"""What a line may say of a frame."""
NOW = '{"pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]]}'


class Said(NamedTuple):
    """What a line says: a pose, float64 [4, 4], and intrinsics, float64 [4] and scaled; None: as before."""

    pose: np.ndarray
    intrinsics: np.ndarray | None


class Keyframes:
    """What was said of some frames, and so of those between.

    Args:
        intrinsics: float64 [4], scaled: until a line says others.

    Attributes:
        horizon: the last frame that something was said of; -1: of none yet.
    """

    def __init__(self, intrinsics: np.ndarray):
        self._keys: deque[tuple[int, View]] = deque()
        self._intrinsics = intrinsics
        self.horizon = -1

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, frame: int, said: Said) -> None:
        """Of `frame`, which is behind all others."""
        self._keys.append((frame, self._view(said)))
        self.horizon = frame

    def _view(self, said: Said) -> View:
        self._intrinsics = self._intrinsics if said.intrinsics is None else said.intrinsics
        return View(said.pose, self._intrinsics)

    def arrive(self, first: int, last: int, said: Said) -> None:
        """From where it is in the frame before `first` the camera arrives in frame `last`, without a leap. Keyframes on
        the way are of no effect, later ones stay."""
        view = self._view(said)
        now = [(first - 1, self.at(first - 1))] if self._keys and first > 0 else []
        self._keys = deque([*now, (last, view), *(key for key in self._keys if key[0] > last)])
        self.horizon = self._keys[-1][0]

    def at(self, frame: int) -> View:
        """Of a frame. Those before the last one that was asked for may be forgotten."""
        while len(self._keys) > 1 and self._keys[1][0] <= frame:
            self._keys.popleft()
        start, a = self._keys[0]
        if frame <= start or len(self._keys) == 1:
            return a
        end, b = self._keys[1]
        return between(a, b, (frame - start) / (end - start))

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """As of `Poses`."""
        views = [self.at(frame) for frame in range(first - 1, first + count)]
        return Views(np.stack([v.pose for v in views]), np.stack([v.intrinsics for v in views]), list(rows))

    @property
    def progress(self) -> dict[str, Any]:
        keys = [[frame, *(part.tolist() for part in view)] for frame, view in self._keys]
        return {"keys": keys, "intrinsics": self._intrinsics.tolist(), "horizon": self.horizon}

    def resume(self, progress: dict[str, Any]) -> None:
        made = ((frame, View(np.array(pose), np.array(seen))) for frame, pose, seen in progress["keys"])
        self._keys, self._intrinsics = deque(made), np.array(progress["intrinsics"])
        self.horizon = progress["horizon"]


class PoseFile(Poses):
    """Keyframes from a file of JSON lines, read as they are needed; it is checked to its end when it is opened.

    Args:
        path: the file, with frames in rising order.
        intrinsics: float64 [4], scaled: until a line says others.

    Raises:
        UserError: the file is missing or holds no line, or one is wrong.
    """

    def __init__(self, path: str | Path, intrinsics: np.ndarray):
        self.name, self._keys = f"source.camera={path}", Keyframes(intrinsics)
        self._lines = FileLines(self.name, path, parse_line, FILE, apart=1)

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`."""
        while not self.ended and self._keys.horizon < first + count:
            line = self._lines.next()
            if line is None:
                self.ended = True
            else:
                self._keys.add(*line)
        self.fresh = self._keys.horizon >= first
        return self._keys.take(first, count, rows)

    def close(self) -> None:
        """Close the file; the last pose holds."""
        self.ended = True
        self._lines.close()


class LivePoses(LiveLines, Poses):
    """Poses from a live binary stream of JSON lines: standard input, a program or a named pipe.

    Lines with a frame are keyframes, and awaited: a pipe and a file with the same lines give the same poses. A line
    without is where the camera arrives by the end of the chunk that is sampled next, the last one winning; it is never
    awaited. The first `take` waits for the first line. A wrong line is skipped with a warning.

    Args:
        stream: where the lines come from.
        intrinsics: float64 [4], scaled: until a line says others.
        stop: a set event releases a blocked `take`, which then answers with what it knows.
        name: the setting that names the stream.
        owned: whether the stream is closed with this.
        backlog: as of `stages.sources.live.LiveBytes`.
    """

    def __init__(
        self,
        stream: BinaryIO,
        intrinsics: np.ndarray,
        stop: threading.Event | None = None,
        name: str = "source.camera=-",
        owned: bool = False,
        backlog: Backlog | None = None,
    ):
        self._keys = Keyframes(intrinsics)
        self._shown = -1
        """The last frame that was taken: what is said of it, or of one before, comes too late."""
        self._last = identity()
        """Where the camera was before anything was said here."""
        super().__init__(stream, parse_line, stop, name, owned, backlog)

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        last = first + count - 1
        now = self.read(lambda: self._keys.horizon < last, lambda: len(self._keys) >= AHEAD)
        self.accepted = self.came if now else None
        if not self._keys and (first > 0 or not now):
            self._keys.add(max(0, first - 1), Said(self._last, None))
        if now:
            self._keys.arrive(first, last, now)
        self.fresh = self._keys.horizon >= first
        self.ended, self._shown = self.over and self._keys.horizon <= last, last
        return self._keys.take(first, count, rows)

    def said(self, frame: int, what: Said, where: str) -> None:
        """See `LiveLines`."""
        check_order(frame, max(self._keys.horizon, self._shown), where, apart=1)
        self._keys.add(frame, what)

    @property
    def progress(self) -> dict[str, Any]:
        """See `Poses`."""
        return super().progress | self._keys.progress | {"shown": self._shown}

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """See `Poses`."""
        if "last" in progress:
            self._last = np.array(progress["last"])
        if "keys" in progress:
            super().resume(progress, again)
            self._keys.resume(progress)
            self._shown = progress["shown"]
            self.ended = self.over and self._keys.horizon <= self._shown


def parse_line(line: bytes, where: str) -> tuple[int | None, Said] | None:
    """One JSON line to (frame or None, what it says); None if the line is blank.

    Raises:
        UserError: the line is wrong; `where` names it.
    """
    if (found := entry_of(line, where, FORM, EXAMPLE)) is None:
        return None
    frame, entry = found
    if POSE not in entry:
        raise UserError(where, "has no pose", f"one object a line, e.g. {EXAMPLE}")
    seen = entry.get(INTRINSICS)
    pose = whole(f"{where}: {POSE}", entry[POSE])
    return frame, Said(pose, None if seen is None else lens(f"{where}: {INTRINSICS}", seen))
