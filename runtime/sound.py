"""Sound in step with the picture: features for the network, samples for the listener."""

from __future__ import annotations

import numpy as np

from stages.encode.audio_features import LogMel
from stages.encode.wav2vec import Features
from stages.sources.audio import RATE, Pcm


class Sound:
    """Sound in step with the picture: features for the network, samples for the listener.

    Args:
        source: where it comes from.
        fps: video frames per second.
        features: what hears it.
    """

    def __init__(self, source: Pcm, fps: int, features: LogMel | Features):
        self.source, self.fps, self.features = source, fps, features
        self._waiting = np.zeros(0, np.float32)
        self._taken = 0
        self.heard = 0
        """Samples that came from the source so far."""
        self.ended = False

    def _pull(self, samples: int) -> None:
        if samples <= 0 or self.ended:
            return
        got = self.source.read(samples)
        self.heard += len(got)
        self.features.push(got)
        self._waiting = np.concatenate([self._waiting, got])
        if len(got) < samples:
            self.ended = True
            self.features.finish()

    def frames(self, count: int) -> np.ndarray:
        """Features [count, ...] of the next `count` video frames; waits for live sound."""
        while missing := self.features.needed(count):
            self._pull(missing)
        return self.features.frames(count)

    def skip(self, count: int) -> None:
        """Nothing hears the next `count` video frames."""
        self.features.skip(count)

    def over(self, frame: int) -> bool:
        """Whether the source ended before video frame `frame`."""
        return self.ended and self.heard * self.fps <= frame * RATE

    def samples(self, end_frame: int) -> np.ndarray:
        """The sound up to the end of video frame `end_frame` - 1 that was not taken yet; silence once it ended."""
        count = end_frame * RATE // self.fps - self._taken
        self._pull(count - len(self._waiting))
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        self._taken += count
        return np.pad(part, (0, count - len(part)))
