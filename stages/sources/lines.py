"""Lines that come live, each for a video frame of its own or for now."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from conf.errors import UserError
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes

log = logging.getLogger(__name__)

LONGEST_LINE = 4096
"""Bytes."""


class LiveLines:
    """Lines of a live binary stream: standard input, a program or a named pipe.

    Lines with a frame are awaited, those without never: what kind is awaited the first line says, and every one after
    it. A line that is wrong is skipped with a warning.

    Args:
        stream: where the bytes come from.
        take: takes in a line, with what to call it in complaints; returns whether it has a frame, None where it is
            blank. Raises UserError where it is wrong.
        stop: a set event releases a blocked `read`.
        name: the setting that names the stream.
        owned: whether the stream is closed with this.
        backlog: as of `LiveBytes`.

    Attributes:
        seen: whether any line came so far.
        came: when the oldest byte of the latest `read` came, by `time.perf_counter`; None: none came.
        over: whether no line comes any more.
    """

    def __init__(
        self,
        stream: BinaryIO,
        take: Callable[[bytes, str], bool | None],
        stop: threading.Event | None,
        name: str,
        owned: bool = False,
        backlog: Backlog | None = None,
    ):
        self.name, self._take = name, take
        self._bytes = LiveBytes(stream, 16 * LONGEST_LINE, stop, name, owned, backlog=backlog)
        self._partial, self._number, self._too_long = b"", 0, False
        self._awaited = False
        """Whether the last one had a frame."""
        self.seen = self.over = False
        self.came: float | None = None

    def read(self, behind: Callable[[], bool], full: Callable[[], bool]) -> None:
        """Take in every line that has come, and wait for those that are awaited.

        Args:
            behind: whether lines with frames have not come far enough.
            full: whether more of them than are needed are held already.

        Raises:
            Turned: it was waited for when the run's generation ended; what has come stays for whoever asks next.
        """
        came = None
        while not self.over:
            missing = self._awaited and behind()
            if not missing and full():
                break
            wait = missing or not self.seen
            came = self._bytes.oldest if came is None else came
            block = self._bytes.take(1 if wait else 0, LONGEST_LINE)
            came = time.perf_counter() if came is None and block else came
            if block:
                self._partial += block
                self._lines()
            elif self._bytes.ended:
                self._partial += b"\n"
                self._lines()
                self.over = True
            elif not wait:
                break
        self.came = came

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
        try:
            awaited = self._take(line, f"{self.name} line {self._number}")
        except UserError as error:
            log.warning("skipped: %s", error)
            return
        if awaited is not None:
            self.seen, self._awaited = True, awaited

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from."""
        return {"seen": self.seen, "awaited": self._awaited, "ended": self.over, "skips": self._too_long}

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
        self.seen, self._awaited = progress["seen"], progress["awaited"]
        self.over, self._too_long = again and progress["ended"], again and progress["skips"]

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._bytes.wire(stop)

    def close(self) -> None:
        """Stop listening."""
        self.over = True
        self._bytes.close()
