"""Bytes that were read of a live stream and that no chunk has yet, in memory that outlives whoever read them.

Who reads a pipe reads ahead of what is sampled, and a pipe gives every byte once. So beside a stream's journal
(`runtime.journal`) each block is written down before anybody can take it, and who takes a lost reader's place begins
with what is left here.

Bytes are counted since the stream's beginning. They stand in files of a few blocks, `ahead.audio.000000000000` the one
that begins with byte 0, and go a file at a time once lines of the journal say what was made of them: so there is no
more here than a reader holds, and a file. Encoded sound is the exception: none of it may go, up to `MOST_BYTES`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

log = logging.getLogger(__name__)

SEGMENT = 1 << 18
"""Bytes behind which another file begins."""
MOST_BYTES = 1 << 26
"""In all, behind which nothing is kept any more: half an hour of sound that is not compressed."""
PREFIX, END, LOCK = "ahead.", "end", "lock"


class Backlog:
    """Of one live source. One process at a time has it.

    Args:
        folder: of the stream's cuts, where its journal is.
        name: of the source, as in lines of the journal.
        taken: bytes that chunks with a line in the journal were sampled from.

    Attributes:
        taken: those; what comes first is behind them.
        end: bytes that came so far.
        over: whether the stream's end came.
        begun: whether another reader has left anything.
    """

    def __init__(self, folder: str | Path, name: str, taken: int = 0):
        self.taken = self.end = taken
        self.over = self.begun = False
        self._folder, self._name = Path(folder), name
        self._firsts: list[int] = []
        self._file: int | None = None
        self._lock: int | None = None
        self._given_up, self._moves = False, hasattr(os, "splice")
        self._changing = threading.Lock()
        """Of the files: one thread writes them, and another says what is not needed any more."""

    def enter(self) -> bool:
        """Have it, unless another process still does; returns whether that is so."""
        try:
            if self._lock is None:
                self._lock = os.open(self._path(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._give_up(error)
        return True

    def left(self) -> bytes:
        """What another reader left behind `taken`."""
        try:
            with self._changing:
                return self._left()
        except OSError as error:
            self._give_up(error)
            return b""

    def _left(self) -> bytes:
        names = (path.name.rpartition(".")[2] for path in self._folder.glob(f"{PREFIX}{self._name}.*"))
        firsts = sorted(int(name) for name in names if name.isdigit())
        parts = [self._path(first).read_bytes() for first in firsts]
        ends = [first + len(part) for first, part in zip(firsts, parts, strict=True)]
        if firsts and firsts[0] <= self.taken <= ends[-1] and firsts[1:] == ends[:-1]:
            self._firsts, self.end = firsts, ends[-1]
        else:  # there is nothing, or it was given up
            self._remove(firsts)
        self.over, self.begun = self._path(END).exists(), bool(self._firsts)
        return b"".join(parts)[self.taken - firsts[0] :] if self._firsts else b""

    def move(self, descriptor: int, size: int) -> bytes | None:
        """Up to `size` bytes of a pipe, written down in the same call of the system as they are read: a process that is
        killed has done both or neither. b"" at the end; None: of something else than a pipe, that cannot be had.

        Raises:
            BlockingIOError: nothing is there now.
        """
        with self._changing:
            try:
                if self._given_up or not self._moves:
                    return None
                self._begin()
                moved = os.splice(descriptor, self._file, size, flags=os.SPLICE_F_NONBLOCK)
                block = os.pread(self._file, moved, self.end - self._firsts[-1])
            except BlockingIOError:
                raise
            except OSError as error:
                if self._file is None or error.errno != errno.EINVAL:
                    self._give_up(error)
                self._moves = False
                return None
            self.end += moved
            return block

    def add(self, block: bytes) -> None:
        """Bytes came; they may be taken when this returns."""
        with self._changing:
            try:
                if not self._given_up:
                    self._begin()
                    left = memoryview(block)
                    while left:
                        left = left[os.write(self._file, left) :]
            except OSError as error:
                self._give_up(error)
            self.end += len(block)

    def _begin(self) -> None:
        """There is a file for a block more."""
        if self._firsts and self.end - self._firsts[0] > MOST_BYTES:
            raise OSError(errno.EFBIG, f"more than {MOST_BYTES >> 20} MB have come")
        if self._file is None or self.end - self._firsts[-1] >= SEGMENT:
            self._close_file()
            self._file = os.open(self._path(self.end), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if self.end not in self._firsts:
                self._firsts.append(self.end)

    def finish(self) -> None:
        """The stream's end came: who reads it next may find nobody to tell that again."""
        self.over = True
        if not self._given_up:
            with suppress(OSError):
                self._path(END).touch(0o600)

    def drop(self, taken: int) -> None:
        """Lines of the journal say what was made of so many bytes."""
        with self._changing:
            self._remove([first for first, following in pairwise(self._firsts) if following <= taken])

    def close(self) -> None:
        """Let another process have it; what is here stays."""
        with self._changing:
            self._close_file()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _give_up(self, error: OSError) -> None:
        """A stream goes on where its memory is full; only what it reads ahead is not safe any more."""
        self._given_up = True
        why = error.strerror or error
        log.warning(
            "launcher.recover=exact: what is read ahead of source.%s cannot be kept (%s); it is lost with its process",
            self._name, why,
        )  # fmt: skip
        with suppress(OSError):
            self._close_file()
            self._remove(list(self._firsts))

    def _remove(self, firsts: list[int]) -> None:
        """Oldest first: what is left of files that are given up then begins too late, which is seen."""
        for first in firsts:
            self._path(first).unlink(missing_ok=True)
        self._firsts = [first for first in self._firsts if first not in firsts]

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _path(self, part: int | str) -> Path:
        return self._folder / f"{PREFIX}{self._name}.{part if isinstance(part, str) else f'{part:012d}'}"
