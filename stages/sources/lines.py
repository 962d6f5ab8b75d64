"""JSON lines that say something of video frames: in a file, or as they come, then of a frame or of now."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from conf import disk
from conf.errors import LONGEST, UserError, nearest
from conf.typed import shown
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes

log = logging.getLogger(__name__)

LONGEST_LINE = 4096
"""Bytes."""
HELD = 16 * LONGEST_LINE
"""Bytes of a live stream that have come and were not taken in yet, at most."""
FRAME = "frame"
BESIDE = ("type", "seq")
"""What an event of a session has beside it, which may be a line, too."""
Said = tuple[int | None, Any]
"""A line: of which frame, None: of now; and what it says of it."""
Parse = Callable[[bytes, str], Said | None]
"""A line, and what to call it in complaints; None: it is blank. Raises UserError where it is wrong."""


def entry_of(line: bytes, where: str, known: Sequence[str], example: str) -> tuple[int | None, dict[str, Any]] | None:
    """One line as (frame or None, its object); None if it is blank.

    Args:
        where: names the line in a complaint.
        known: what it may say beside its frame; the first is what it is there for.
        example: of one that does.

    Raises:
        UserError: it is no object, says something else, or is of no frame that there could be.
    """
    what = known[0]
    if len(line) > LONGEST_LINE:
        raise UserError(where, f"is longer than {LONGEST_LINE} bytes", f"one {what} a line, e.g. {example}")
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(where, "is not JSON", f"one object a line, e.g. {example}") from error
    if not isinstance(entry, dict):
        raise UserError(where, f"has no {what}", f"one object a line, e.g. {example}")
    if unknown := next((name for name in entry if name not in (FRAME, *known, *BESIDE)), None):
        raise UserError(f"{where}: {shown(unknown)}", "is nothing that a line says", nearest(unknown, (FRAME, *known)))
    frame = entry.get(FRAME)
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        said = f"{where}: frame={str(frame)[:LONGEST]}"
        raise UserError(said, "a frame is an integer from 0 on", f"e.g. {example}")
    return frame, entry


def check_order(frame: int, last: int, where: str, apart: int = 0) -> None:
    """Refuse a frame that is not `apart` behind the last one."""
    if frame < last + apart:
        rule = f"comes after frame {last}"
        raise UserError(f"{where}: frame={frame}", rule, "put the lines in the order of frames")


class FileLines:
    """Lines of a file, read as they are needed; it is checked to its end when it is opened.

    Args:
        name: the setting that names the file.
        path: of the file.
        parse: one of its lines.
        remedy: what to do where it is none, with an example.
        apart: how many frames a line has to be behind the one before it, at least.

    Raises:
        UserError: the file is missing or holds no line, or one is wrong.
    """

    def __init__(self, name: str, path: str | Path, parse: Parse, remedy: str, apart: int = 0):
        self.name, self._path, self._parse, self._remedy, self._apart = name, Path(path), parse, remedy, apart
        self._closed = False
        disk.readable(name, path, f"{remedy}, a named pipe or -")
        try:
            with self._path.open("rb") as file:
                if not sum(1 for _ in self._parsed(file)):
                    raise UserError(name, "holds no line", remedy)
            self._file = self._path.open("rb")
        except OSError as error:
            raise UserError(name, f"cannot be read ({error.strerror})", remedy) from error
        self._lines = self._parsed(self._file)

    def next(self) -> Said | None:
        """The next line; None: there is none."""
        try:
            return next(self._lines, None)
        except ValueError:  # closed in another thread
            if self._closed:
                return None
            raise

    def close(self) -> None:
        """Close the file: no line comes any more."""
        self._closed = True
        self._file.close()

    def _parsed(self, file: BinaryIO) -> Iterator[Said]:
        number, last = 0, -self._apart
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{self.name} line {number}"
            parsed = self._parse(line, where)
            if parsed is None:
                continue
            if parsed[0] is None:
                raise UserError(where, "has no frame", f"say of which frame it is; {self._remedy}")
            check_order(parsed[0], last, where, self._apart)
            last = parsed[0]
            yield parsed


class LiveLines:
    """Lines of a live binary stream: standard input, a program or a named pipe. A source of them is a kind of this.

    Lines with a frame are awaited, those without never: what kind is awaited the first line says, and every one after
    it. A line that is wrong is skipped with a warning.

    Args:
        stream: where the bytes come from.
        parse: a line.
        stop: a set event releases a blocked `read`.
        name: the setting that names the stream.
        owned: whether the stream is closed with this.
        backlog: as of `LiveBytes`.

    Attributes:
        ended: whether what was said last holds for good.
        came: when the oldest byte of the latest `read` came, by `time.perf_counter`; None: none came.
        over: whether no line comes any more.
    """

    def __init__(
        self,
        stream: BinaryIO,
        parse: Parse,
        stop: threading.Event | None,
        name: str,
        owned: bool = False,
        backlog: Backlog | None = None,
    ):
        self.name, self._parse = name, parse
        self._bytes = LiveBytes(stream, HELD, stop, name, owned, backlog=backlog)
        self._partial, self._number, self._too_long = b"", 0, False
        self._seen = self._awaited = False
        """Whether any line came so far, and whether the last one had a frame."""
        self._now: Any = None
        """What the latest line without a frame says; None: none came since it was asked for."""
        self.ended = self.over = False
        self.came: float | None = None

    def said(self, frame: int, what: Any, where: str) -> None:
        """A line says something of a frame; raises UserError where it cannot."""
        raise NotImplementedError

    @property
    def silent(self) -> bool:
        """Whether it ended before any line came."""
        return self.ended and not self._seen

    def read(self, behind: Callable[[], bool], full: Callable[[], bool]) -> Any:
        """Take in every line that has come, and wait for those that are awaited; returns what is said of now.

        Args:
            behind: whether lines with frames have not come far enough.
            full: whether more of them than are needed are held already.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        came, taken = None, 0
        while not self.over:
            missing = self._awaited and behind()
            # Behind as much as is held at a time all has come since: a flood would never end.
            if not missing and (full() or taken >= HELD):
                break
            wait = missing or not self._seen
            came = self._bytes.oldest if came is None else came
            block = self._bytes.take(1 if wait else 0, LONGEST_LINE)
            came = time.perf_counter() if came is None and block else came
            if block:
                taken += len(block)
                self._partial += block
                self._lines()
            elif self._bytes.ended:
                self._partial += b"\n"
                self._lines()
                self.over = True
            elif not wait:
                break
        now, self._now, self.came = self._now, None, came
        return now

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
            if (parsed := self._parse(line, where)) is None:
                return
            frame, what = parsed
            if frame is None:
                self._now = what
            else:
                self.said(frame, what, where)
        except UserError as error:
            log.warning("skipped: %s", error)
            return
        self._seen, self._awaited = True, frame is not None

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from: plain values."""
        return {"seen": self._seen, "awaited": self._awaited, "ended": self.over, "skips": self._too_long}

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
        self.over, self._too_long = again and progress["ended"], again and progress["skips"]

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._bytes.wire(stop)

    def close(self) -> None:
        """Stop listening; what was said last holds."""
        self.ended = self.over = True
        self._bytes.close()
