"""Pictures and sound to a program that reads them as they are made (`sink.reader=tcp://HOST:PORT/TOKEN`).

Each chunk is a line of JSON, `{"index": 3, "fps": 16, "frames": [12, 64, 64, 3], "sound": 12000}` (null: none), with
the pixels behind it, uint8 RGB, and the samples, float32 little-endian at 16 kHz. The reader answers each chunk that it
takes with one byte, and the sink is never more than AHEAD chunks ahead: a slow reader holds up its own stream, and no
memory grows. Once the reader has gone, what is still made is thrown away: it cancels the stream, or keeps it for its
files. The last line is `{"end": true}`. A sink that goes without it is gone with its process: another may connect, which
gives again what the reader has not taken, and perhaps some of what it has. The reader takes each chunk once.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from stages.link import Door, connect

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
        self._fps, self._next, self._ahead = fps, first, 0

    def write(self, frames: np.ndarray, sound: np.ndarray | None) -> None:
        """Send a chunk: uint8 [n, H, W, 3], and float32 [m] or None. Waits for a reader that is behind."""
        head = {"index": self._next, "fps": self._fps, "frames": frames.shape, "sound": None}
        bodies = [np.ascontiguousarray(frames, np.uint8)]
        if sound is not None:
            bodies.append(np.ascontiguousarray(sound, "<f4"))
            head["sound"] = len(sound)
        self._next += 1
        try:
            while self._socket and self._ahead >= AHEAD:
                taken = len(self._socket.recv(AHEAD))
                self._ahead -= taken
                if not taken:
                    self.leave()
            if self._socket:
                self._socket.sendall(json.dumps(head).encode() + b"\n")
                for body in bodies:
                    self._socket.sendall(body)
                self._ahead += 1
        except OSError:
            self.leave()

    @property
    def seen(self) -> int:
        """Number of the first chunk that the reader is not known to have taken; one that has gone takes none."""
        return self._next - (self._ahead if self._socket else 0)

    def close(self) -> None:
        """Nothing more will come."""
        with suppress(OSError):
            if self._socket:
                # Who takes nothing is not waited for; it hears of the end all the same, from who runs the stream.
                self._socket.send(json.dumps(END).encode() + b"\n", socket.MSG_DONTWAIT)
        self.leave()

    def leave(self) -> None:
        """Nothing more will come from here."""
        if self._socket:
            self._socket.close()
            self._socket = None


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
