"""Pictures and sound to a program that reads them as they are made (`sink.reader=tcp://HOST:PORT/TOKEN`).

Each chunk is a line of JSON, `{"index": 3, "fps": 16, "frames": [12, 64, 64, 3], "sound": 12000}` (null: none), with
the pixels behind it, uint8 RGB, and the samples, float32 little-endian at 16 kHz. The reader answers each chunk that it
takes with one byte, and the sink is never more than AHEAD chunks ahead: a slow reader holds up its own stream, and no
memory grows. Once the reader has gone, what is still made is thrown away: it cancels the stream, or keeps it for its
files. The last line is `{"end": true}`. A sink that goes without it is gone with its process: another may connect,
which gives again what the reader has not taken, and perhaps some of what it has. The reader takes each chunk once.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from stages.link import Door, connect, once_it_can

AHEAD = 2
END = {"end": True}
LONGEST_LINE = 1024


@dataclass(frozen=True)
class Chunk:
    """Some frames of a stream, and what is heard with them.

    Attributes:
        index: of the chunk in its stream.
        frames: uint8 RGB [frames, height, width, 3].
        sound: mono at 16 kHz, float32 [samples] in [-1, 1]; None: the model is silent.
        fps: frames per second.
    """

    index: int
    frames: np.ndarray
    sound: np.ndarray | None
    fps: float


class ReaderSink:
    """The stream's end.

    Args:
        address: of the reader.
        fps: frames per second.
        first: number of the first chunk to come.

    Raises:
        UserError: nobody listens there.
    """

    def __init__(self, address: str, fps: float, first: int = 0):
        self._socket: socket.socket | None = connect("sink.reader", address)
        self._socket.setblocking(False)
        self._fps, self._next, self._ahead = fps, first, 0
        self._unsent: deque[memoryview | None] = deque()
        """What the reader has not been sent yet; None: a chunk ends."""
        self._between = True
        """Whether no chunk has been sent in part."""
        self._released = threading.Event()

    def write(self, frames: np.ndarray, sound: np.ndarray | None) -> None:
        """Send a chunk: uint8 [n, H, W, 3], and float32 [m] or None. Waits for a reader that is behind, unless it is
        released: then what it has not sent is sent with the next chunk."""
        head = {"index": self._next, "fps": self._fps, "frames": frames.shape, "sound": None}
        bodies = [np.ascontiguousarray(frames, np.uint8)]
        if sound is not None:
            bodies.append(np.ascontiguousarray(sound, "<f4"))
            head["sound"] = len(sound)
        self._next += 1
        parts = [json.dumps(head).encode() + b"\n", *(body.reshape(-1).view(np.uint8) for body in bodies)]
        self._unsent += [*(memoryview(part) for part in parts if len(part)), None]
        self._send(self._released.is_set)

    def release(self) -> None:
        """From any thread: wait for the reader no more until `hold`. Nothing is lost: what it has not taken is kept
        here, a chunk at most for each time."""
        self._released.set()

    def hold(self) -> None:
        """Wait for the reader again."""
        self._released.clear()

    def _send(self, over: Callable[[], bool]) -> None:
        """Send what there is, as the reader takes it, until it is `over`."""
        try:
            while self._socket and self._unsent:
                connection, part = self._socket, self._unsent[0]
                if part is None:
                    self._unsent.popleft()
                    self._ahead, self._between = self._ahead + 1, True
                elif self._between and self._ahead >= AHEAD:
                    taken = once_it_can(connection, lambda at=connection: at.recv(AHEAD), False, over)
                    if taken is None:
                        return
                    self._ahead -= len(taken)
                    if not taken:
                        self.leave()
                else:
                    sent = once_it_can(connection, lambda at=connection, part=part: at.send(part), True, over)
                    if sent is None:
                        return
                    self._between = False
                    self._unsent[0] = part[sent:]
                    if not self._unsent[0]:
                        self._unsent.popleft()
        except OSError:
            self.leave()

    @property
    def seen(self) -> int:
        """Number of the first chunk that the reader is not known to have taken; one that has gone takes none."""
        return self._next - (self._ahead + self._unsent.count(None) if self._socket else 0)

    def close(self) -> None:
        """Nothing more will come. What could not be sent before is waited for, as in `write`."""
        self._send(lambda: False)
        with suppress(OSError):
            if self._socket:
                # Who takes nothing is not waited for; it hears of the end all the same, from who runs the stream.
                self._socket.send(json.dumps(END).encode() + b"\n")
        self.leave()

    def leave(self) -> None:
        """Nothing more will come from here."""
        if self._socket:
            self._socket.close()
            self._socket = None
        self._unsent.clear()


class Reader:
    """The program's end; one thread at a time may read.

    Args:
        host: this machine, as the machines of workers know it.

    Attributes:
        address: for `sink.reader`.
    """

    def __init__(self, host: str):
        self._door = Door(host)
        self.address = self._door.address
        self._next, self._over = 0, False

    def next(self, over: Callable[[], bool]) -> Chunk | None:
        """Wait for the next chunk; None: there will be none, since the sink was closed, or it is `over` and none is
        there any more."""
        while not self._over and self._door.wait(over):
            try:
                head = _head(self._door.file)
                chunk = None if head is None or head == END else _chunk(head, self._door.file)
            except OSError:  # closed by another thread, or the worker is gone
                head = chunk = None
            if chunk is None:
                self._over = head == END
                self._door.again()
                continue
            with suppress(OSError):  # the last chunk may outlive its sink
                self._door.socket.sendall(b".")
            if chunk.index >= self._next:
                self._next = chunk.index + 1
                return chunk
        return None

    def close(self) -> None:
        """Read no more; any thread may do so."""
        self._door.close()


def _head(file: BinaryIO) -> dict[str, Any] | None:
    """The next line of a connection; None: it has ended."""
    line = file.readline(LONGEST_LINE)
    return json.loads(line) if line.endswith(b"\n") else None


def _chunk(head: dict[str, Any], file: BinaryIO) -> Chunk | None:
    """The chunk of a line; None: the connection has ended in the middle of it."""
    frames = np.empty(head["frames"], np.uint8)
    sound = None if head["sound"] is None else np.empty(head["sound"], "<f4")
    for body in (frames, sound):
        if body is not None and file.readinto(body.reshape(-1).view(np.uint8)) < body.nbytes:
            return None
    return Chunk(head["index"], frames, sound, head["fps"])
