"""Bytes from a live stream (standard input, a pipe, a socket's file), without ever being stuck in it.

A thread reads into a bounded buffer and stops reading while it is full, so the writer is slowed down and memory
does not grow. Whoever waits for bytes is released by the stream's end, by `close` in any thread, and by the stop event.

Where the run goes on in another generation, the bytes stay here: who waits is told so (`Turned`) and has taken nothing,
and whoever comes next goes on from there. Where another process may have to, they are in a `Backlog` as well.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from conf.errors import UserError
from conf.paths import ADDRESS
from stages.link import connect
from stages.sources.backlog import Backlog

log = logging.getLogger(__name__)

POLL_S = 0.05  # how late a stop event may be noticed
BLOCK = 4096
PIPE_BYTES = 1 << 16
"""Held of a named pipe."""
LEFT_S = 5.0
"""How long it may take whoever read a stream before to leave it."""
PATIENCE_S = 3.0
"""How long nothing may come before it is said that the first byte is waited for."""


def standard_input(value: str, given: BinaryIO | None = None) -> BinaryIO:
    """Where the setting `value`, such as `source.audio=-`, reads: what was given in its place, or standard input.

    Raises:
        UserError: it is closed.
    """
    if given is not None:
        return given
    if sys.stdin is None:
        raise UserError(value, "standard input is closed", "pipe something into it, or give a file or a named pipe")
    return sys.stdin.buffer


def named_pipe(value: str, path: str | Path) -> BinaryIO:
    """A named pipe, opened without waiting for whoever writes into it.

    Args:
        value: the setting that names it, `source.actions=PATH`.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)  # noqa: PTH123
    except OSError as error:
        raise UserError(value, f"cannot be read ({error.strerror})", "give a named pipe that you may read") from error


def kept_open(paths: Iterable[str | None]) -> list[BinaryIO]:
    """Those that are named pipes, for whoever outlives their reader: a pipe that nobody has open loses what is in it,
    and ends whoever writes."""
    found = []
    for path in paths:
        with suppress(OSError, UserError):  # who is to read it says what is wrong with it
            if path and Path(path).is_fifo():
                found.append(named_pipe(path, path))
    return found


def live_stream(setting: str, path: str, given: BinaryIO | None = None) -> BinaryIO:
    """What a live source reads: standard input as `standard_input` has it, a program at an address, or a named pipe.

    Raises:
        UserError: standard input is closed, nobody answers at the address, or the pipe cannot be opened.
    """
    if path == "-":
        return standard_input(f"{setting}={path}", given)
    if not path.startswith(ADDRESS):
        return named_pipe(f"{setting}={path}", path)
    with connect(setting, path) as connection:
        return connection.makefile("rb", buffering=0)  # holds the connection until it is let go of


class Turned(Exception):  # noqa: N818  an event, not an error
    """The run goes on in its next generation. Whoever waited has taken nothing of a live source."""


class Stop(threading.Event):
    """Ends a stream at its next chunk when set, and releases whoever waits for its live sources.

    Attributes:
        turned: whether the stream does not end with it, but goes on in the run's next generation.
    """

    def __init__(self):
        super().__init__()
        self.turned = False

    def turn(self) -> None:
        """Set it, since the run's generation is over."""
        self.turned = True  # first: whoever sees that it is set must know why
        self.set()


def turned(stop: threading.Event) -> bool:
    """Whether a stream goes on in the run's next generation."""
    return stop.is_set() and isinstance(stop, Stop) and stop.turned


class LiveBytes:
    """A bounded buffer between a live stream and its one consumer.

    Args:
        stream: binary stream; one with a file descriptor is read from there, so that reading can be abandoned.
        limit: bytes held at most.
        stop: releases every wait when set.
        name: the setting it is read for, which says once that nothing comes; empty: nothing is said.
        owned: whether the stream is closed when nothing more is read of it.
        block: bytes read at a time, at most.
        backlog: where each block is written down before it can be taken, and what another reader left comes from;
            None: what is read goes with the process.

    Attributes:
        came: when the oldest byte of the latest `take` came, by `time.perf_counter`; None: it took none.
    """

    def __init__(
        self,
        stream: BinaryIO,
        limit: int,
        stop: threading.Event | None = None,
        name: str = "",
        owned: bool = False,
        block: int = BLOCK,
        backlog: Backlog | None = None,
    ):
        self._stream, self._limit, self._name, self._owned = stream, max(1, limit), name, owned
        self._block, self._backlog = block, backlog
        self._stop = stop if stop is not None else threading.Event()
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._at_end = self._closed = False
        self.came: float | None = None
        self._taken = self._read_so_far = backlog.taken if backlog else 0
        self._arrivals: deque[tuple[int, float]] = deque()
        """Of every block that is held, where it ends in all that was read, and when it came."""
        self._thread = threading.Thread(target=self._run, name="live-input", daemon=True)
        self._thread.start()

    def take(self, least: int, most: int) -> bytes:
        """Wait for `least` bytes (or all that will ever come), then return up to `most` of what is there.

        `least` may be 0: what is there now, possibly nothing.

        Raises:
            Turned: it was waited for when the run's generation ended.
        """
        least = min(least, self._limit)
        with self._changed:
            while len(self._buffer) < least and not self.over:
                if turned(self._stop):
                    raise Turned
                self._changed.wait(POLL_S)
            taken = bytes(self._buffer[:most])
            del self._buffer[:most]
            self.came = self._oldest() if taken else None
            self._taken += len(taken)
            while self._arrivals and self._arrivals[0][0] <= self._taken:
                self._arrivals.popleft()
            self._changed.notify_all()
        return taken

    @property
    def position(self) -> int:
        """Bytes taken since the stream's beginning, by whoever read it."""
        with self._changed:
            return self._taken

    def drop(self, position: int) -> None:
        """What was made of the bytes before `position` is known without them."""
        if self._backlog:
            self._backlog.drop(position)

    @property
    def oldest(self) -> float | None:
        """When the oldest byte held came, by `time.perf_counter`; None while nothing is held."""
        with self._changed:
            return self._oldest()

    def _oldest(self) -> float | None:
        return self._arrivals[0][1] if self._arrivals else None

    @property
    def over(self) -> bool:
        """True once nothing will be added to the buffer any more: end of input, closed or stopped."""
        return self._at_end or self.abandoned

    @property
    def abandoned(self) -> bool:
        """Whether `close` or the stop event ended it."""
        return self._closed or (self._stop.is_set() and not turned(self._stop))

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        with self._changed:
            self._stop = stop
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """True once nothing will ever be taken any more."""
        with self._changed:
            return self.over and not self._buffer

    @property
    def buffered(self) -> int:
        """Bytes held now, never more than `limit`."""
        with self._changed:
            return len(self._buffer)

    def close(self) -> None:
        """Stop reading and release whoever waits. The stream itself stays open, unless it is owned."""
        with self._changed:
            self._closed = True
            self._buffer.clear()
            self._arrivals.clear()
            self._changed.notify_all()
        # A stream without a descriptor may be stuck in its own read; the thread is a daemon and ends with the process.
        self._thread.join(timeout=4 * POLL_S)

    def _run(self) -> None:
        try:
            if self._backlog is None or self._go_on():
                self._read_on()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed by its owner
            log.warning("live input ended early: %s", error)
        finally:
            with self._changed:
                self._at_end = True
                self._changed.notify_all()
            if self._backlog:
                self._backlog.close()
            if self._owned:
                self._stream.close()

    def _go_on(self) -> bool:
        """Hold what another reader left, once that has let go of the stream; returns whether more can come."""
        end = time.monotonic() + LEFT_S
        while not self._backlog.enter() and time.monotonic() < end and not self._closed:
            time.sleep(POLL_S)
        if self._closed:
            return False
        self._hold(self._backlog.left())
        if self._backlog.over:
            return False
        if hasattr(self._stream, "go_on"):  # its bytes come from somebody who has sent some already
            self._stream.go_on(self._backlog.end)
        return True

    def _hold(self, block: bytes) -> None:
        with self._changed:
            if block and not self._closed:
                self._buffer += block
                self._read_so_far += len(block)
                self._arrivals.append((self._read_so_far, time.perf_counter()))
            self._changed.notify_all()

    def _read_on(self) -> None:
        try:
            descriptor = self._stream.fileno()
        except (OSError, AttributeError):
            descriptor = None
        began, unsaid = time.monotonic(), self._name
        while (room := self._wait_for_room()) > 0:
            block = self._read(descriptor, min(room, self._block))
            if block is None:
                if unsaid and time.monotonic() - began > PATIENCE_S:
                    log.warning("%s: nothing has come yet, waiting for whoever writes into it", unsaid)
                    unsaid = ""
                continue
            unsaid = ""
            if not block:
                if self._backlog:
                    self._backlog.finish()
                break
            self._hold(block)

    def _wait_for_room(self) -> int:
        """Free bytes, waiting while there are none; 0 when reading is over."""
        with self._changed:
            while len(self._buffer) >= self._limit and not self.over:
                self._changed.wait(POLL_S)
            return 0 if self.over else self._limit - len(self._buffer)

    def _read(self, descriptor: int | None, size: int) -> bytes | None:
        """Up to `size` bytes, b"" at the end, None if none came for a while."""
        if descriptor is None:
            block = getattr(self._stream, "read1", self._stream.read)(size)
            if self._backlog:
                self._backlog.add(block)
            return block
        come = select.select([descriptor], [], [], POLL_S)[0]
        # That its writers are gone a named pipe tells only those who had opened it before, until they read it.
        deserted = not come and self._read_so_far and not os.get_blocking(descriptor)
        with suppress(BlockingIOError):
            return self._take_in(descriptor, size) if come or deserted else None
        return None

    def _take_in(self, descriptor: int, size: int) -> bytes:
        if self._backlog is None:
            return os.read(descriptor, size)
        if (block := self._backlog.move(descriptor, size)) is None:
            block = os.read(descriptor, size)
            self._backlog.add(block)
        return block


class PipeFile(io.RawIOBase):
    """A named pipe as a file. Unlike one that is opened as usual, neither opening nor reading it is stuck without a
    writer: `close` in any thread and the stop event end it. The arguments are those of `named_pipe`, and as of
    `LiveBytes`.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(
        self, value: str, path: str | Path, stop: threading.Event | None = None, backlog: Backlog | None = None
    ):
        self._bytes = LiveBytes(named_pipe(value, path), PIPE_BYTES, stop, value, owned=True, backlog=backlog)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Wait for bytes, then take what fits; 0 at the end."""
        block = self._bytes.take(1, len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        """End it, for whoever reads as well."""
        if not self.closed:
            self._bytes.close()
        super().close()
