"""Sound in step with the picture: features for the network, samples for the listener."""

from __future__ import annotations

import numpy as np

from stages.encode.audio_features import LogMel
from stages.encode.wav2vec import Features
from stages.sources.audio import RATE, Pcm

SKIPPED = 60 * RATE
"""Samples read at a time, where a file is read on."""


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

    @property
    def progress(self) -> tuple[dict[str, int | bool], dict[str, np.ndarray]]:
        """What goes on from here: (counters, samples held). Nothing in it changes later."""
        content, buffer = self.features.progress
        content |= {"taken": self._taken, "heard": self.heard, "ended": self.ended}
        return content, {"features": buffer, "waiting": self._waiting}

    def resume(
        self, content: dict[str, int | bool], held: dict[str, np.ndarray], live: bool, again: bool = False
    ) -> None:
        """Go on from the progress of another: a file is read on from where it stood, live sound from now on.

        Args:
            again: whether live sound goes on where the other stood, to the sample.
        """
        self.features.resume(content, held["features"])
        self._waiting, self._taken, self.heard = held["waiting"], content["taken"], content["heard"]
        self.ended = content["ended"]
        if live:
            if not again:
                self._reopen()
            return
        left = self.heard
        while left > 0 and (skipped := len(self.source.read(min(left, SKIPPED)))):
            left -= skipped

    def _reopen(self) -> None:
        """A live source that had ended goes on: what was missed meanwhile was silent, to see and to hear."""
        at = max(self.features.seen, self._taken + len(self._waiting))
        self.ended = False
        self.features.reopen(at)
        self._waiting = np.pad(self._waiting, (0, at - self._taken - len(self._waiting)))
        self.heard = at

    def hear(self, end_frame: int) -> None:
        """Read what there is to hear up to the end of video frame `end_frame` - 1; waits for live sound."""
        self._pull(end_frame * RATE // self.fps - self._taken - len(self._waiting))

    def samples(self, end_frame: int) -> np.ndarray:
        """The sound up to the end of video frame `end_frame` - 1 that was not taken yet; silence once it ended."""
        count = end_frame * RATE // self.fps - self._taken
        self.hear(end_frame)
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        self._taken += count
        return np.pad(part, (0, count - len(part)))
