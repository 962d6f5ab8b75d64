"""What a stream was sampled from since its newest whole cut, so that it can be sampled again.

A line of JSON for each chunk, in the stream's folder of cuts: memory that outlives the process. It is written before
the chunk enters, so whatever others have seen of a chunk, its line is there. It holds what cannot be asked for again: a
prompt that was heard, live sound, actions and poses, a camera's pictures as JPEG, and what a session is told of the
chunk: which events it showed, and from where. Files are read again.

Lines stand in files of a few, `journal.000040` the one that begins with chunk 40, and go a file at a time once a newer
cut is whole.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from conf.errors import UserError
from stages.controls import Row, row_of
from stages.sources.film import Shots

log = logging.getLogger(__name__)

SEGMENT = 8
"""Lines in a file."""
MOST_BYTES = 1 << 26
"""In all: a stream of which no cut becomes whole keeps so much, which is a quarter of an hour of sound, and of a camera
half a minute where each picture has 80 KB and 16 are shown a second."""
PREFIX, RUN = "journal.", "journal.run"


@dataclass
class Line:
    """What one chunk was sampled from.

    Attributes:
        chunk: which.
        prompt: that was heard and holds from it on; None: none was heard.
        accepted: when that was, in seconds of this host's clock.
        number: of the last order whose prompt was sampled so far.
        sound: read from a live source for it, float32 [n], exactly; None: there is none.
        short: whether that source ended meanwhile.
        actions: a row for each video frame (`stages.controls`), of a live source; None: there is none.
        frames: how many came from a live source of pictures, which keeps them itself; None: there is none.
        seen: when the oldest picture came that is new in it, of these or of a camera.
        shots: what it showed of a session's camera; None: it has none.
        held: how the source of actions stood behind it.
        pressed: when the oldest of its actions came that is new in it.
        views: poses and intrinsics of a live source, as that gave them; None: there is none.
        looked: how that source stood behind it.
        moved: when the oldest of its poses came that is new in it.
        at: where the world's camera is in its last frame (`stages.views.where`); None: it has none.
        events: ids of a session's events that it shows first.
        pace: how its stream's clock stood behind it, if it has one.
        read: bytes of each live stream that this and all chunks before were sampled from; what came behind them is in
            its backlog (`stages.sources.backlog`).
    """

    chunk: int
    prompt: str | None = None
    accepted: float = 0.0
    number: int = -1
    sound: np.ndarray | None = None
    short: bool = False
    actions: list[Row] | None = None
    frames: int | None = None
    seen: float | None = None
    shots: Shots | None = None
    held: dict[str, Any] = field(default_factory=dict)
    pressed: float | None = None
    views: list[list] | None = None
    looked: dict[str, Any] = field(default_factory=dict)
    moved: float | None = None
    at: list[float] | None = None
    events: list[str] = field(default_factory=list)
    pace: dict[str, Any] | None = None
    read: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The line as it stands in the file."""
        content = dict(vars(self))  # not `asdict`, which copies every action
        content["shots"] = self.shots and self.shots.told()
        if self.sound is not None:
            content["sound"] = base64.b64encode(self.sound.astype("<f4").tobytes()).decode()
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Line:
        """What a line of the file says."""
        if content["sound"] is not None:
            content["sound"] = np.frombuffer(base64.b64decode(content["sound"]), "<f4").astype(np.float32)
        if content["actions"] is not None:
            content["actions"] = list(map(row_of, content["actions"]))
        if content["shots"] is not None:
            content["shots"] = Shots.of(content["shots"])
        return cls(**content)


@dataclass
class End:
    """A stream ended before a chunk; `stopped`: from outside, before its own end."""

    end: int
    stopped: bool

    def to_json(self) -> bytes:
        """As `Line.to_json`."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"


class Journal:
    """One stream's. It goes on behind the lines that are there.

    Args:
        folder: of the stream's cuts.
        whole: gives the chunk of the newest cut that is whole; lines before it are needed no more. Asked now and then.

    Attributes:
        run: names the run, whose orders have numbers of their own.
        read: as the last line has it.
        again: whether there was a journal already: another process, or generation, has sampled the stream.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, whole: Callable[[], int] = lambda: 0):
        self.folder, self.whole = Path(folder), whole
        self._file: int | None = None
        self._in_file = 0
        self._bytes: dict[int, int] = {}
        """Of each file, by the chunk with which it begins."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.again = (named := self.folder / RUN).exists()
            if not self.again:
                named.write_text(token_hex(8))
            self.run = named.read_text()
            self._lines, self.end = self._read()
            self.read = self._lines[-1].read if self._lines else {}
        except OSError as error:
            raise self._refuse(error.strerror or str(error)) from error

    @property
    def next(self) -> int | None:
        """The chunk of the next line; None: there is no line yet."""
        return self._lines[-1].chunk + 1 if self._lines else None

    # -- reading ------------------------------------------------------------------------------------------------------

    def lines(self, chunk: int) -> list[Line]:
        """Those of `chunk` and of all behind it, as they stood when the journal was opened; let go of with that.

        Raises:
            UserError: some of them are not there.
        """
        lines, self._lines = [line for line in self._lines if line.chunk >= chunk], []
        if lines and [line.chunk for line in lines] != list(range(chunk, lines[-1].chunk + 1)):
            raise self._refuse(f"what was sampled from chunk {chunk} on is not known any more")
        return lines

    def _read(self) -> tuple[list[Line], End | None]:
        """Every whole line; what was torn as a process ended is cut off."""
        found, end = [], None
        for first in self._files():
            path, good = self._path(first), 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if not line.endswith(b"\n"):
                        break
                    content = json.loads(line)
                    if "end" in content:
                        end = End(**content)
                    else:
                        found.append(Line.of(content))
                except (ValueError, KeyError, TypeError):
                    break
                good += len(line)
            os.truncate(path, good)
            self._bytes[first] = good
        return found, end

    def _files(self) -> list[int]:
        names = (path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*"))
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, first: int) -> Path:
        return self.folder / f"{PREFIX}{first:06d}"

    def held(self, name: str) -> bytes | None:
        """What was put beside the lines; None: nothing was."""
        path = self.folder / f"{PREFIX}{name}"
        return path.read_bytes() if path.exists() else None

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, line: Line) -> None:
        """Chunk `line.chunk` was sampled, and may enter when this returns.

        Raises:
            UserError: there is no room for it.
        """
        if self._file is None or self._in_file >= SEGMENT:
            self._begin(line.chunk)
        self._write(line.to_json())
        self._in_file += 1

    def ended(self, chunk: int, stopped: bool) -> None:
        """The stream has ended before `chunk`: its live sources may be gone when that is asked again.

        Raises:
            UserError: there is no room for it.
        """
        if self.end is None:
            if self._file is None:
                self._begin(chunk)
            self.end = End(chunk, stopped)
            self._write(self.end.to_json())

    def hold(self, name: str, data: bytes) -> None:
        """Put something beside the lines, once.

        Raises:
            UserError: there is no room for it.
        """
        path = self.folder / f"{PREFIX}{name}"
        try:
            if not path.exists():
                path.write_bytes(data)
        except OSError as error:
            raise self._refuse(error.strerror or str(error)) from error

    def _begin(self, chunk: int) -> None:
        self.drop(self.whole())
        self.close()
        try:
            self._file = os.open(self._path(chunk), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise self._refuse(error.strerror) from error
        self._in_file, self._bytes[chunk] = 0, 0

    def _write(self, line: bytes) -> None:
        while len(self._bytes) > 1 and sum(self._bytes.values()) + len(line) > MOST_BYTES:
            self._remove(min(self._bytes))
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise self._refuse(error.strerror) from error
        self._bytes[max(self._bytes)] += len(line)

    def drop(self, before: int) -> None:
        """Files with nothing but lines of chunks below `before` go."""
        firsts = sorted(self._bytes)
        for first, following in pairwise(firsts):
            if following <= before:
                self._remove(first)

    def _remove(self, first: int) -> None:
        self._path(first).unlink(missing_ok=True)
        del self._bytes[first]

    def close(self) -> None:
        """Write no more; the lines stay."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _refuse(self, why: str) -> UserError:
        return UserError(
            f"launcher.recover=exact: the journal in {self.folder}", why, "make room there, or set launcher.recover=off"
        )
