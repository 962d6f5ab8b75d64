"""What the viewer does, per video frame, from JSON lines such as `{"frame": 40, "action": "forward"}`.

What is held may be said in any way that `stages.controls` knows: `{"frame": 40, "keys": ["forward", "left"], "mouse":
[0.1, -0.1]}`. It holds from its frame until a later line changes it; before the first line nothing is. A file and a
pipe with the same lines give the same rows. Live lines without `frame` mean "now".
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from conf import disk
from conf.errors import UserError
from stages.controls import Controls, Row, row_of
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes

log = logging.getLogger(__name__)

LONGEST_LINE = 4096  # bytes
AHEAD = 4096  # stamped live lines kept for later
NOW = '{"action": "forward"}'
EXAMPLE = '{"frame": 40, "action": "forward"}'


class Actions(Protocol):
    """A source of actions, as rows of the model's controls."""

    ended: bool  # no line is left: the last row holds from here on

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The rows of frames first_frame ... first_frame + count - 1; calls go forward in time."""
        ...

    def close(self) -> None:
        """Release the source."""
        ...


class ActionFile:
    """Actions from a file, read as they are needed; it is checked to its end when it is opened.

    Args:
        path: the file of JSON lines, with frames in rising order.
        known: what can be pressed, or actions of which one holds at a time, the first that of none.

    Raises:
        UserError: the file is missing or holds no line, or one is wrong.
    """

    def __init__(self, path: str | Path, known: Controls | Iterable[str]):
        self._path, self._controls = Path(path), Controls.of(known)
        self._keyframes = _Keyframes(self._controls.rest)
        name, remedy = f"source.actions={path}", f"give a file of lines like {EXAMPLE}"
        disk.readable(name, path, f"{remedy}, a named pipe or -")
        try:
            if not self._check():
                raise UserError(name, "holds no line", remedy)
            self._file = self._path.open("rb")
        except OSError as error:
            raise UserError(name, f"cannot be read ({error.strerror})", remedy) from error
        self._lines = self._parsed(self._file)
        self.ended = False

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on."""
        while not self.ended and self._keyframes.horizon < first_frame + count:
            line = self._next()
            if line is None:
                self.ended = True
            else:
                self._keyframes.add(*line)
        return self._keyframes.walk(first_frame, count)

    def close(self) -> None:
        """Close the file; the last action holds."""
        self.ended = True
        self._file.close()

    def _next(self) -> tuple[int, Row] | None:
        try:
            return next(self._lines, None)
        except ValueError:  # closed in another thread
            if self.ended:
                return None
            raise

    def _check(self) -> int:
        """How many lines there are."""
        with self._path.open("rb") as file:
            return sum(1 for _ in self._parsed(file))

    def _parsed(self, file: BinaryIO) -> Iterator[tuple[int, Row]]:
        """(frame, row) of every line."""
        number, last = 0, 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"source.actions={self._path} line {number}"
            parsed = parse_line(line, self._controls, where)
            if parsed is None:
                continue
            frame, row = parsed
            if frame is None:
                raise UserError(where, "has no frame", f"say from which frame on, e.g. {EXAMPLE}")
            _refuse_going_back(frame, last, where)
            last = frame
            yield frame, row


class LiveActions:
    """Actions from a live binary stream of JSON lines: standard input, or a named pipe.

    Lines with a frame are awaited: `take` returns when a line beyond its frames, or the end of the input, has been
    seen. Lines without are applied from the first frame of the next `take` on and never awaited, the last one winning.
    The first `take` waits for the first line to see which kind it is. A wrong line is skipped with a warning.

    Args:
        stream: where the lines come from.
        known: as of `ActionFile`.
        stop: a set event releases a blocked `take`, which then answers with what it knows.
        name: the setting that names the stream.
        owned: whether the stream is closed with this.
        backlog: as of `LiveBytes`.
    """

    def __init__(
        self,
        stream: BinaryIO,
        known: Controls | Iterable[str],
        stop: threading.Event | None = None,
        name: str = "source.actions=-",
        owned: bool = False,
        backlog: Backlog | None = None,
    ):
        self.name, self._controls = name, Controls.of(known)
        self._keyframes = _Keyframes(self._controls.rest)
        self._bytes = LiveBytes(stream, 16 * LONGEST_LINE, stop, name, owned, backlog=backlog)
        self._partial, self._number, self._too_long = b"", 0, False
        self._seen = self._awaited = False  # any line so far; the last one had a frame
        self._now: Row | None = None
        self.accepted: float | None = None
        """When the first "now" line of the latest `take` came, by `time.perf_counter`; None: there was none."""
        self.fresh = False
        """Whether a line took effect in the latest `take`."""
        self.ended = False

    @property
    def silent(self) -> bool:
        """Whether it ended before any action came."""
        return self.ended and not self._seen

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        came, at_end = None, self.ended
        while not at_end:
            behind = self._awaited and self._keyframes.horizon < first_frame + count
            if not behind and self._keyframes.pending >= AHEAD:
                break
            wait = behind or not self._seen
            came = self._bytes.oldest if came is None else came
            block = self._bytes.take(1 if wait else 0, LONGEST_LINE)
            came = time.perf_counter() if came is None and block else came
            if block:
                self._partial += block
                self._lines()
            elif self._bytes.ended:
                self._partial += b"\n"
                self._lines()
                at_end = True
            elif not wait:
                break
        now, self._now = self._now, None
        self.accepted = came if now is not None else None
        coming = self._keyframes.pending
        walked = self._keyframes.walk(first_frame, count, now)
        self.fresh = now is not None or self._keyframes.pending < coming
        self.ended = self.ended or (at_end and not self._keyframes.pending)
        return walked

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from: the action in force and those to come, and whether no line comes any more."""
        said = {"seen": self._seen, "awaited": self._awaited, "ended": self.ended, "skips": self._too_long}
        return said | self._keyframes.progress

    @property
    def position(self) -> int:
        """Bytes since the stream's beginning that `progress` has taken in: all but half a line."""
        return self._bytes.position - len(self._partial)

    def drop(self, position: int) -> None:
        """As of `LiveBytes`."""
        self._bytes.drop(position)

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """Go on from the progress of another; the lines that follow are live.

        Args:
            again: whether it is of the same run, where what had ended has ended.
        """
        self._seen, self._awaited = progress["seen"], progress["awaited"]
        self.ended = again and progress["ended"]
        self._too_long = again and progress["skips"]
        self._keyframes.resume(progress)

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._bytes.wire(stop)

    def close(self) -> None:
        """Stop listening; the last action holds."""
        self.ended = True
        self._bytes.close()

    def _lines(self) -> None:
        """Take in every whole line of what has arrived."""
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            self._number += 1
            if not self._too_long:
                self._line(line)
            self._too_long = False
        if len(self._partial) > LONGEST_LINE:
            if not self._too_long:
                log.warning("%s line %d: longer than %d bytes, skipped", self.name, self._number + 1, LONGEST_LINE)
            self._partial, self._too_long = b"", True

    def _line(self, line: bytes) -> None:
        where = f"{self.name} line {self._number}"
        try:
            parsed = parse_line(line, self._controls, where)
            if parsed is None:
                return
            frame, row = parsed
            if frame is not None:
                _refuse_going_back(frame, max(0, self._keyframes.horizon), where)
        except UserError as error:
            log.warning("skipped: %s", error)
            return
        self._seen, self._awaited = True, frame is not None
        if frame is None:
            self._now = row
        else:
            self._keyframes.add(frame, row)


def parse_line(line: bytes, controls: Controls, where: str) -> tuple[int | None, Row] | None:
    """One JSON line to (frame or None, row); None if the line is blank.

    Raises:
        UserError: the line is wrong; `where` names it.
    """
    if len(line) > LONGEST_LINE:
        raise UserError(where, f"is longer than {LONGEST_LINE} bytes", f"one action a line, e.g. {EXAMPLE}")
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(where, "is not JSON", f"one object a line, e.g. {EXAMPLE}") from error
    if not isinstance(entry, dict):
        raise UserError(where, "has no action", f"one object a line, e.g. {EXAMPLE}")
    row, frame = controls.parse(entry, where), entry.get("frame")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise UserError(f"{where}: frame={frame}", "a frame is an integer from 0 on", f"e.g. {EXAMPLE}")
    return frame, row


def _refuse_going_back(frame: int, last: int, where: str) -> None:
    if frame < last:
        raise UserError(f"{where}: frame={frame}", f"comes after frame {last}", "put the lines in the order of frames")


class _Keyframes:
    """The row in force, `rest` at first, and those to come."""

    def __init__(self, rest: Row):
        self._held = rest
        self._coming: deque[tuple[int, Row]] = deque()
        self.horizon = -1  # frame of the last line: what lies before it is known

    @property
    def pending(self) -> int:
        """Lines whose frame has not been reached."""
        return len(self._coming)

    @property
    def progress(self) -> dict[str, Any]:
        return {"held": self._held, "coming": [list(line) for line in self._coming], "horizon": self.horizon}

    def resume(self, progress: dict[str, Any]) -> None:
        self._held, self.horizon = row_of(progress["held"]), progress["horizon"]
        self._coming = deque((frame, row_of(row)) for frame, row in progress["coming"])

    def add(self, frame: int, row: Row) -> None:
        """From `frame` on, `row`."""
        self._coming.append((frame, row))
        self.horizon = frame

    def walk(self, first: int, count: int, now: Row | None = None) -> list[Row]:
        """Rows of `count` frames; `now` overrides what is in force at the first of them."""
        walked = []
        for frame in range(first, first + count):
            while self._coming and self._coming[0][0] <= frame:
                self._held = self._coming.popleft()[1]
            if frame == first and now is not None:
                self._held = now
            walked.append(self._held)
        return walked
