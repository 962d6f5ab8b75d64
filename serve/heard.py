"""Sound that comes over a WebSocket: any rate in, 16 kHz mono out, each piece at its place in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import av
import numpy as np

from serve.incoming import Audio

if TYPE_CHECKING:
    from serve.media import Viewer
    from serve.session import Session

RATE = 16_000
"""Samples per second that sessions hear."""
LARGE = 1 << 16
"""Bytes from which on resampling is not done in the loop."""
PAUSE, AHEAD = RATE // 2, RATE // 4
"""Samples: a microphone that is behind by more was silent; sound that is ahead by more is a backlog, and too late."""


class TimeLine:
    """A microphone's own time line, where pieces come without times: one after the other, but for pauses.

    Sound that was held up on its way arrives all at once. What of it would be heard more than a quarter of a second
    after it was said is left out, so that no delay stays.
    """

    def __init__(self):
        self._begun: float | None = None
        self._at = 0

    def place(self, samples: int, now: float) -> int | None:
        """The position of the first of so many samples, just recorded; None: they are left out.

        Args:
            samples: at RATE.
            now: seconds, monotonic.
        """
        if self._begun is None:
            self._begun = now - samples / RATE
        behind = round((now - self._begun) * RATE) - (self._at + samples)
        if behind < -AHEAD:
            return None
        if behind > PAUSE:
            self._at += behind
        found = self._at
        self._at += samples
        return found


class Sound:
    """Gives a session what it is to hear and to say.

    Args:
        session: that hears.
        clock: seconds, monotonic.
    """

    def __init__(self, session: Session, viewer: Viewer, clock: Callable[[], float] = time.monotonic):
        self._session, self._viewer, self._clock = session, viewer, clock
        self._line = TimeLine()
        self._resamplers: dict[bool, tuple[tuple[int, int], av.AudioResampler]] = {}

    async def take(self, audio: Audio, data: bytes) -> None:
        """Take a message of sound: of a microphone (`audio.live`), or speech to be spoken.

        Raises:
            Problem: as `Session.speech`.
        """
        if len(data) >= LARGE:
            pcm = await asyncio.to_thread(self._resampled, audio, data)
        else:
            pcm = self._resampled(audio, data)
        if not pcm:
            return
        if not audio.live:
            self._session.speech(pcm)
        elif (at := self._line.place(len(pcm) // 2, self._clock())) is not None:
            self._session.sound(pcm, at, self._viewer)

    def _resampled(self, audio: Audio, data: bytes) -> bytes:
        form = audio.sample_rate, audio.channels
        if form == (RATE, 1):
            return data
        known, resampler = self._resamplers.get(audio.live, (None, None))
        if known != form:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            self._resamplers[audio.live] = form, resampler
        samples = np.frombuffer(data, "<i2")[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono" if audio.channels == 1 else "stereo")
        frame.sample_rate = audio.sample_rate
        return b"".join(made.to_ndarray().tobytes() for made in resampler.resample(frame))
