"""Sound from a file, by FFmpeg."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import av
import numpy as np

from conf import disk
from conf.errors import UserError
from stages.sources.audio import NOTHING, RATE
from stages.sources.backlog import Backlog
from stages.sources.live import PipeFile

log = logging.getLogger(__name__)


class AudioFile:
    """The first audio track of anything FFmpeg reads, videos included, decoded as it is asked for.

    The first samples are decoded at once, so that a bad file fails here. A damaged packet further on is skipped
    with a warning. Samples are those of `ffmpeg -i FILE -f s16le -ac 1 -ar 16000`: a file and the same file piped into
    `LivePcm` agree.

    Args:
        path: the file.
        stop: where it is a named pipe, a set event ends it and releases a blocked `read`; `close` does so, too.
        backlog: all that was ever read of the pipe: a decoder begins at the beginning. As of `LiveBytes`.

    Raises:
        UserError: the file is missing, unreadable, or has no sound in it.
    """

    rate = RATE
    duration_s: float | None = None

    def __init__(self, path: str | Path, stop: threading.Event | None = None, backlog: Backlog | None = None):
        self.path = Path(path)
        self._name = f"source.audio={path}"
        self._blocks, self._held, self._container = iter(()), NOTHING, None
        self._lock = threading.Lock()
        """Held while the container is used: FFmpeg's are of one thread at a time."""
        self._pipe = None
        found = disk.readable(self._name, path, "give the path of an audio or video file, or -", ("file", "pipe"))
        try:
            self._pipe = PipeFile(self._name, self.path, stop, backlog) if found == "pipe" else None
            self._container = av.open(self._pipe or f"file:{self.path}")
            self._open_track()
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | ValueError | EOFError | UserError):
                raise
            if self._pipe and stop is not None and stop.is_set():
                return  # nobody will hear it
            if isinstance(error, UserError):
                raise
            raise self._unreadable(_reason(error)) from error

    def _open_track(self) -> None:
        if not self._container.streams.audio:
            raise UserError(self._name, "the file has no audio track", "give a file with sound, or leave it out")
        track = self._container.streams.audio[0]
        if track.codec_context is None:
            raise self._unreadable("its header names no codec")
        track.codec_context.thread_count = 1
        if track.duration is not None:
            self.duration_s = float(track.duration * track.time_base)
        elif self._container.duration is not None:
            self.duration_s = self._container.duration / av.time_base
        self._setup, self._resampler = None, None
        self._blocks = self._decode(track)
        self._held = NOTHING
        self._failure = None
        first = self.read(1)
        self._held = np.concatenate([first, self._held])
        if not len(first):
            raise self._unreadable(_reason(self._failure) if self._failure else "there are no samples in it")

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32 [<= samples]; fewer only at the end of the file."""
        with self._lock:
            parts, have = [self._held], len(self._held)
            while have < samples and (block := next(self._blocks, None)) is not None:
                parts.append(block)
                have += len(block)
            joined = np.concatenate(parts)
            self._held = joined[samples:].copy()
            return joined[:samples]

    def close(self) -> None:
        """Close the file; `read` gives nothing any more. Any thread may do so."""
        if self._pipe:
            self._pipe.close()
        with self._lock:
            self._blocks, self._held = iter(()), NOTHING
            if self._container:
                self._container.close()

    def _decode(self, track: av.AudioStream):
        """Blocks of 16 kHz samples, from the file's start to its end."""
        packets = self._container.demux(track)
        while True:
            try:
                packet = next(packets, None)
            except (OSError, ValueError, EOFError) as error:  # an EOFError of FFmpeg is no OSError
                self._note(error)
                packet = None
            if packet is None:
                break
            try:
                frames = packet.decode()
            except (OSError, ValueError, EOFError) as error:  # an EOFError of FFmpeg is no OSError
                self._note(error)
                continue
            for frame in frames:
                yield from self._resample(frame)
        yield from self._drain()

    def _note(self, error: Exception) -> None:
        self._failure = error
        log.warning("%s: skipped damaged sound: %s", self._name, _reason(error))

    def _resample(self, frame: av.AudioFrame):
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:  # some tracks change their rate or layout on the way
            yield from self._drain()
            self._setup = setup
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        frame.pts = None
        yield from map(_samples, self._resampler.resample(frame))

    def _drain(self):
        """What the resampler still holds."""
        if self._resampler is not None:
            resampler, self._resampler = self._resampler, None
            yield from map(_samples, resampler.resample(None))

    def _unreadable(self, reason: str) -> UserError:
        return UserError(
            self._name, f"cannot be read as sound ({reason})", "give a file that plays, such as wav, mp3 or mp4"
        )


def _samples(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray().reshape(-1).astype(np.float32) / 32768


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
