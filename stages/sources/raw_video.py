"""Live pictures: raw RGB24 frames of the stream's size, at the model's rate, from a binary stream."""

from __future__ import annotations

import threading
from typing import BinaryIO

import numpy as np

from conf.errors import UserError
from stages.sources.backlog import Backlog
from stages.sources.live import PIPE_BYTES, LiveBytes

CHUNKS = 2
"""Chunks of frames that are held at most; beyond that the writer waits."""
SIGNS = {b"RIFF": 0, b"ftyp": 4, b"\x1aE\xdf\xa3": 0, b"YUV4MPEG2": 0, b"nut/multimedia": 0}
"""How files begin that are no raw frames, and at which byte."""
LONGEST_SIGN = 14


class LiveFrames:
    """Frames from a live binary stream: standard input, a program or a named pipe.

    The first `take` waits for all its frames. Later ones wait as well where the stream is made as fast as it comes.
    Where it is watched live they never wait: what has not come by then is the last frame, held, and comes later.

    Args:
        stream: where the bytes come from.
        height, width: of a frame, in pixels.
        most: frames of the longest chunk.
        waits: whether every `take` waits for its frames.
        stop: a set event ends the frames and releases a blocked `take`.
        name: the setting that they are read for.
        owned: whether the stream is closed when nothing more is read of it.
        backlog: as of `LiveBytes`.

    Attributes:
        accepted: when the oldest frame came that is new in the latest `take`, by `time.perf_counter`; None: none is.

    Raises:
        UserError: the stream is a terminal.
    """

    count = None

    def __init__(
        self,
        stream: BinaryIO,
        height: int,
        width: int,
        most: int,
        waits: bool,
        stop: threading.Event | None = None,
        name: str = "source.video=-",
        owned: bool = False,
        backlog: Backlog | None = None,
    ):
        self._height, self._width, self._waits = height, width, waits
        self._bytes_each = height * width * 3
        self.name, self.accepted = name, None
        self._stop = threading.Event() if stop is None else stop
        if getattr(stream, "isatty", lambda: False)():
            raise UserError(name, "standard input is a terminal, not frames", self._pipe)
        self._last: np.ndarray | None = None
        self._looked = False
        limit, block = CHUNKS * most * self._bytes_each, min(PIPE_BYTES, self._bytes_each)
        self._bytes = LiveBytes(stream, limit, self._stop, name, owned, block, backlog)

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3]; None where fewer will ever come, or when stopped.

        Raises:
            UserError: what arrives is a file, header and all.
            Turned: they were waited for when the run's generation ended; nothing is lost of them.
        """
        waited = self._waits or self._last is None
        if waited:
            wanted = count
        else:
            over = self._bytes.over  # first: what is there when it is over is all that there will be
            wanted = min(count, self._bytes.buffered // self._bytes_each)
            if over and wanted < count:
                return None
        data = self._bytes.take(wanted * self._bytes_each if waited else 0, wanted * self._bytes_each)
        self.accepted = self._bytes.came
        self._refuse_file(data)
        if waited and len(data) < count * self._bytes_each:
            return None
        return self._filled(np.frombuffer(data, np.uint8), count)

    def _filled(self, data: np.ndarray, count: int) -> np.ndarray:
        """Frames that came, and behind them the last one as often as others are missing."""
        frames = data.reshape(-1, self._height, self._width, 3)
        if len(frames):
            self._last = frames[-1]
        missing = count - len(frames)
        return np.concatenate([frames, np.repeat(self._last[None], missing, 0)]) if missing else frames

    def _refuse_file(self, data: bytes) -> None:
        if self._looked or not data:
            return
        self._looked = True
        if any(data[at:LONGEST_SIGN].startswith(sign) for sign, at in SIGNS.items()):
            raise UserError(self.name, "carries a video file, not bare frames", self._pipe)

    def skip(self, count: int) -> None:
        """Live frames that another took do not come again."""

    @property
    def position(self) -> int:
        """Bytes since the stream's beginning that frames were made of."""
        return self._bytes.position

    def drop(self, position: int) -> None:
        """As of `LiveBytes`."""
        self._bytes.drop(position)

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._stop = stop
        self._bytes.wire(stop)

    def close(self) -> None:
        """Stop listening; `take` gives nothing any more."""
        self._bytes.close()

    @property
    def _pipe(self) -> str:
        size = f"{self._width}x{self._height}"
        return f"pipe raw frames into it, e.g. ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 -s {size} -r FPS - | ..."
