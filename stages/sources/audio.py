"""Sound as 16 kHz mono float samples: from a file (`audio_file.py`), from live PCM, or silence.

All sources look the same (`Pcm`): `read` blocks until it has what was asked for, gives less only at the end, and
nothing after it.
"""

from __future__ import annotations

import threading
from typing import BinaryIO, Protocol

import numpy as np

from conf.errors import UserError
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes, Turned

RATE = 16000
NOTHING = np.zeros(0, np.float32)
SAMPLE = 2
"""Bytes of one, in a stream."""


class Pcm(Protocol):
    """A source of sound."""

    rate: int  # samples per second
    duration_s: float | None  # None: unknown, or live

    def read(self, samples: int) -> np.ndarray:
        """The next `samples` samples in [-1, 1], float32; fewer only at the end, none after it."""
        ...

    def close(self) -> None:
        """Release the source."""
        ...


class Silence:
    """No sound: zeros for ever, or for `duration_s` seconds."""

    rate = RATE

    def __init__(self, duration_s: float | None = None):
        self.duration_s = duration_s
        self._left = None if duration_s is None else round(duration_s * RATE)

    def read(self, samples: int) -> np.ndarray:
        """Zeros, float32 [samples] or what is left of `duration_s`."""
        if self._left is not None:
            samples = min(samples, self._left)
            self._left -= samples
        return np.zeros(samples, np.float32)

    def close(self) -> None:
        """Nothing to release."""


class LivePcm:
    """Live 16-bit little-endian mono sound at 16 kHz from a binary stream, such as standard input.

    Args:
        stream: where the bytes come from.
        stop: a set event ends the sound and releases a blocked `read`.
        name: the setting that it is read for.
        owned: whether the stream is closed when nothing more is read of it.
        buffer_s: seconds held at most; beyond that the writer waits.
        backlog: as of `LiveBytes`.

    Raises:
        UserError: the stream is a terminal.
    """

    rate = RATE
    duration_s = None

    def __init__(
        self,
        stream: BinaryIO,
        stop: threading.Event | None = None,
        name: str = "source.audio=-",
        owned: bool = False,
        buffer_s: float = 2.0,
        backlog: Backlog | None = None,
    ):
        if getattr(stream, "isatty", lambda: False)():
            raise UserError(name, "standard input is a terminal, not sound", _PIPE)
        self.name = name
        self._bytes = LiveBytes(stream, 2 * round(buffer_s * RATE), stop, name, owned, backlog=backlog)
        self._rest = b""  # half a sample
        self._first = backlog is None or not backlog.taken

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32 [<= samples], waiting for them; fewer only at the end or when stopped.

        Raises:
            UserError: what arrives is a WAV file, header and all.
            Turned: it was waited for when the run's generation ended; nothing is lost of it.
        """
        if self._first and samples > 0:
            self._rest = self._bytes.take(4, 4)
            self._first = False
            if self._rest == b"RIFF":
                raise UserError(self.name, "carries a WAV file, not bare samples", _PIPE)
        data = bytearray(self._rest[: 2 * samples])
        rest = self._rest[2 * samples :]
        while len(data) < 2 * samples:
            try:
                block = self._bytes.take(1, 2 * samples - len(data))
            except Turned:
                self._rest = bytes(data)
                raise
            if not block:
                break
            data += block
        self._rest = rest
        whole = len(data) // 2 * 2  # a last odd byte is no sample
        return np.frombuffer(bytes(data[:whole]), "<i2").astype(np.float32) / 32768

    @property
    def position(self) -> int:
        """Bytes since the stream's beginning that `read` has given."""
        return self._bytes.position - len(self._rest)

    def drop(self, position: int) -> None:
        """As of `LiveBytes`."""
        self._bytes.drop(position)

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        self._bytes.wire(stop)

    def close(self) -> None:
        """Stop listening; `read` gives nothing any more."""
        self._bytes.close()
        self._rest = b""


_PIPE = "pipe 16-bit 16 kHz mono PCM into it, e.g. ffmpeg -i speech.wav -f s16le -ac 1 -ar 16000 - | ..."
