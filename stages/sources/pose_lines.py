"""Poses as lines say them, of every frame or of some, in a file or as they come.

    {"frame": 40, "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]], "intrinsics": [416, 416, 416, 240]}

Between two of them a camera goes as `stages.views.between` has it. Intrinsics that a line leaves out are those of the
line before.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conf import disk
from conf.errors import UserError
from stages.controls import Row
from stages.inputs import Views
from stages.sources.backlog import Backlog
from stages.sources.lines import LONGEST_LINE, LiveLines
from stages.sources.poses import FILE, Poses
from stages.views import EXAMPLE, View, between, identity, lens, whole

AHEAD = 4096
"""Keyframes of a live stream that are kept for later."""
NOW = '{"pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]]}'


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

    def add(self, frame: int, pose: np.ndarray, intrinsics: np.ndarray | None) -> None:
        """What was said of `frame`, which is behind all others; intrinsics None: as before."""
        self._intrinsics = self._intrinsics if intrinsics is None else intrinsics
        self._keys.append((frame, View(pose, self._intrinsics)))
        self.horizon = frame

    def arrive(self, first: int, count: int, pose: np.ndarray, intrinsics: np.ndarray | None) -> None:
        """From where it is in the frame before `first`, the camera arrives at `pose` in the last of `count` frames,
        without a leap. Keyframes on the way are of no effect, later ones stay."""
        self._intrinsics = self._intrinsics if intrinsics is None else intrinsics
        last, view = first + count - 1, View(pose, self._intrinsics)
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
        self.name, self._path = f"source.camera={path}", Path(path)
        self._keys = Keyframes(intrinsics)
        disk.readable(self.name, path, f"{FILE}, a named pipe or -")
        try:
            with self._path.open("rb") as file:
                if not sum(1 for _ in self._parsed(file)):
                    raise UserError(self.name, "holds no line", FILE)
            self._file = self._path.open("rb")
        except OSError as error:
            raise UserError(self.name, f"cannot be read ({error.strerror})", FILE) from error
        self._lines = self._parsed(self._file)

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`."""
        while not self.ended and self._keys.horizon < first + count:
            if (line := self._next()) is None:
                self.ended = True
            else:
                self._keys.add(*line)
        self.fresh = self._keys.horizon >= first
        return self._keys.take(first, count, rows)

    def close(self) -> None:
        """Close the file; the last pose holds."""
        self.ended = True
        self._file.close()

    def _next(self) -> tuple[int, np.ndarray, np.ndarray | None] | None:
        try:
            return next(self._lines, None)
        except ValueError:  # closed in another thread
            if self.ended:
                return None
            raise

    def _parsed(self, file: BinaryIO) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        number, last = 0, -1
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{self.name} line {number}"
            parsed = parse_line(line, where)
            if parsed is None:
                continue
            frame, pose, intrinsics = parsed
            if frame is None:
                raise UserError(where, "has no frame", f"say of which frame, e.g. {EXAMPLE}")
            _refuse_going_back(frame, last, where)
            last = frame
            yield frame, pose, intrinsics


class LivePoses(Poses):
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
        self.name, self._keys = name, Keyframes(intrinsics)
        self._now: tuple[np.ndarray, np.ndarray | None] | None = None
        self._shown = -1
        """The last frame that was taken: what is said of it, or of one before, comes too late."""
        self._lines = LiveLines(stream, self._line, stop, name, owned, backlog)

    @property
    def silent(self) -> bool:
        """See `Poses`."""
        return self.ended and not self._lines.seen

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        last = first + count - 1
        self._lines.read(lambda: self._keys.horizon < last, lambda: len(self._keys) >= AHEAD)
        now, self._now = self._now, None
        self.accepted = self._lines.came if now else None
        if now:
            self._keys.arrive(first, count, *now)
        elif not self._keys:
            self._keys.add(0, identity(), None)
        self.fresh = self._keys.horizon >= first
        self.ended, self._shown = self._lines.over and self._keys.horizon <= last, last
        return self._keys.take(first, count, rows)

    def _line(self, line: bytes, where: str) -> bool | None:
        if (parsed := parse_line(line, where)) is None:
            return None
        frame, pose, intrinsics = parsed
        if frame is None:
            self._now = pose, intrinsics
            return False
        _refuse_going_back(frame, max(self._keys.horizon, self._shown), where)
        self._keys.add(frame, pose, intrinsics)
        return True

    @property
    def progress(self) -> dict[str, Any]:
        """See `Poses`."""
        return self._lines.progress | self._keys.progress | {"shown": self._shown}

    @property
    def position(self) -> int:
        """Bytes since the stream's beginning that `progress` has taken in."""
        return self._lines.position

    def drop(self, position: int) -> None:
        """As of `stages.sources.live.LiveBytes`."""
        self._lines.drop(position)

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """See `Poses`."""
        if "keys" in progress:
            self._lines.resume(progress, again)
            self._keys.resume(progress)
            self._shown = progress["shown"]

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._lines.wire(stop)

    def close(self) -> None:
        """See `Poses`."""
        self._lines.close()


def parse_line(line: bytes, where: str) -> tuple[int | None, np.ndarray, np.ndarray | None] | None:
    """One JSON line to (frame or None, pose, intrinsics or None); None if the line is blank.

    Raises:
        UserError: the line is wrong; `where` names it.
    """
    if len(line) > LONGEST_LINE:
        raise UserError(where, f"is longer than {LONGEST_LINE} bytes", f"one pose a line, e.g. {EXAMPLE}")
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(where, "is not JSON", f"one object a line, e.g. {EXAMPLE}") from error
    if not isinstance(entry, dict) or "pose" not in entry:
        raise UserError(where, "has no pose", f"one object a line, e.g. {EXAMPLE}")
    frame, intrinsics = entry.get("frame"), entry.get("intrinsics")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise UserError(f"{where}: frame={str(frame)[:80]}", "a frame is an integer from 0 on", f"e.g. {EXAMPLE}")
    seen = None if intrinsics is None else lens(f"{where}: intrinsics", intrinsics)
    return frame, whole(f"{where}: pose", entry["pose"]), seen


def _refuse_going_back(frame: int, last: int, where: str) -> None:
    if frame <= last:
        raise UserError(f"{where}: frame={frame}", f"comes behind frame {last}", "put the lines in the order of frames")
