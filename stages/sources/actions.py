"""What the viewer does, per video frame, from JSON lines such as `{"frame": 40, "action": "forward"}`.

What is held may be said in any way that `stages.controls` knows: `{"frame": 40, "keys": ["forward", "left"], "mouse":
[0.1, -0.1]}`. It holds from its frame until a later line changes it; before the first line nothing is. A file and a
pipe with the same lines give the same rows. Live lines without `frame` mean "now".
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from stages.controls import FORM, Controls, Row, row_of
from stages.sources.backlog import Backlog
from stages.sources.lines import FileLines, LiveLines, check_order, entry_of

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
        controls, remedy = Controls.of(known), f"give a file of lines like {EXAMPLE}"
        self._keyframes = _Keyframes(controls.rest)
        self._lines = FileLines(f"source.actions={path}", path, partial(parse_line, controls=controls), remedy)
        self.ended = False

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on."""
        while not self.ended and self._keyframes.horizon < first_frame + count:
            line = self._lines.next()
            if line is None:
                self.ended = True
            else:
                self._keyframes.add(*line)
        return self._keyframes.walk(first_frame, count)

    def close(self) -> None:
        """Close the file; the last action holds."""
        self.ended = True
        self._lines.close()


class LiveActions(LiveLines):
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
        controls = Controls.of(known)
        self._keyframes = _Keyframes(controls.rest)
        self.accepted: float | None = None
        """When the first "now" line of the latest `take` came, by `time.perf_counter`; None: there was none."""
        self.fresh = False
        """Whether a line took effect in the latest `take`."""
        super().__init__(stream, partial(parse_line, controls=controls), stop, name, owned, backlog)

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        end = first_frame + count
        now = self.read(lambda: self._keyframes.horizon < end, lambda: self._keyframes.pending >= AHEAD)
        self.accepted = self.came if now is not None else None
        coming = self._keyframes.pending
        walked = self._keyframes.walk(first_frame, count, now)
        self.fresh = now is not None or self._keyframes.pending < coming
        self.ended = self.over and not self._keyframes.pending
        return walked

    def said(self, frame: int, what: Row, where: str) -> None:
        """See `LiveLines`."""
        check_order(frame, self._keyframes.horizon, where)
        self._keyframes.add(frame, what)

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from: the action in force and those to come, and whether no line comes any more."""
        return super().progress | self._keyframes.progress

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """See `LiveLines`."""
        super().resume(progress, again)
        self._keyframes.resume(progress)
        self.ended = self.over and not self._keyframes.pending


def parse_line(line: bytes, where: str, controls: Controls) -> tuple[int | None, Row] | None:
    """One JSON line to (frame or None, row); None if the line is blank.

    Raises:
        UserError: the line is wrong; `where` names it.
    """
    if (found := entry_of(line, where, FORM, EXAMPLE)) is None:
        return None
    frame, entry = found
    return frame, controls.parse(entry, where)


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
