"""Sound in, hidden states of video frames out: from a whole file, or from sound that goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import devices
from conf.schema import Wav2VecConfig
from stages.encode.wav2vec.model import FIELD, HOP, RATE, Wav2Vec
from stages.rate import frame_rate

STATES_PER_SECOND = RATE // HOP
READ_PER_SECOND = 30
"""How often the published models read the states: what a video frame gets is the nearest of these."""


def normalised(samples: Tensor, mean: float, variance: float) -> Tensor:
    """Zero mean and unit variance, as wav2vec2's own feature extractor does it."""
    return ((samples.double() - mean) / math.sqrt(variance + 1e-7)).float()


def nearest_read(frame: int, fps: Fraction) -> int:
    """Which of the 30 readings a second video frame `frame` takes."""
    return round(Fraction(frame) * READ_PER_SECOND / fps)


class Features:
    """What both ways of listening share: samples in, hidden states of video frames out.

    Args:
        model: gives the model, when it is first needed.
        config: its sizes.
        fps: video frames per second.
    """

    def __init__(self, model: Callable[[], Wav2Vec], config: Wav2VecConfig, fps: float):
        self._model, self.config, self.fps = model, config, frame_rate(fps)
        self._buffer = np.zeros(0, np.float32)
        self._start = 0  # absolute number of the buffer's first sample
        self._frame = 0  # next video frame
        self._finished = False

    def push(self, samples: np.ndarray) -> None:
        """Append float samples in [-1, 1], shape [n]. Raises RuntimeError after `finish()`."""
        if self._finished:
            raise RuntimeError("sound was pushed after finish()")
        self._buffer = np.concatenate([self._buffer, np.asarray(samples, np.float32).reshape(-1)])

    def finish(self) -> None:
        """The sound has ended."""
        self._finished = True

    def skip(self, n: int) -> None:
        """Go on as if the next `n` video frames had been asked for."""
        self._frame += n

    @property
    def progress(self) -> tuple[dict[str, Any], np.ndarray]:
        """What another goes on from: (counters, what is held)."""
        return {"start": self._start, "frame": self._frame, "finished": self._finished}, self._buffer

    def resume(self, content: dict[str, Any], buffer: np.ndarray) -> None:
        """Go on from the progress of another of the same kind."""
        self._start, self._frame, self._finished = content["start"], content["frame"], content["finished"]
        self._buffer = buffer

    @property
    def seen(self) -> int:
        """Absolute number of the first sample that is neither held nor behind."""
        return self._start + len(self._buffer)

    def reopen(self, at: int) -> None:
        """Take `finish` back: sound comes again, from sample `at` on (at least `seen`); before it was silence."""
        self._finished = False
        self._buffer = np.pad(self._buffer, (0, at - self._start - len(self._buffer)))

    def needed(self, n: int) -> int:
        """How many samples are missing, at the least, before `frames(n)` can answer; 0 after `finish()`."""
        raise NotImplementedError

    def frames(self, n: int) -> np.ndarray:
        """Hidden states of the next `n` video frames: float32 [n, layers, dim]."""
        raise NotImplementedError

    def _take(self, states: Tensor) -> np.ndarray:
        """[layers, n, dim] as it is handed out."""
        self._frame += states.shape[1]
        return states.transpose(0, 1).float().cpu().numpy()


class WholeFile(Features):
    """The published way: the whole sound at once; silence, where it has ended, is states of zeros."""

    _read: Tensor | None = None

    @property
    def progress(self) -> tuple[dict[str, Any], np.ndarray]:
        """What another goes on from: what was read of the sound, where it was listened to, else the sound."""
        content, buffer = super().progress
        read = self._read is not None
        return content | {"read": read}, self._read.numpy() if read else buffer

    def resume(self, content: dict[str, Any], buffer: np.ndarray) -> None:
        """Go on from the progress of another whole file."""
        nothing = np.zeros(0, np.float32)
        super().resume(content, nothing if content["read"] else buffer)
        self._read = torch.from_numpy(buffer) if content["read"] else None

    def needed(self, n: int) -> int:
        """An hour at a time, until the end."""
        return 0 if self._finished else 3600 * RATE

    def frames(self, n: int) -> np.ndarray:
        """Hidden states of the next `n` video frames: float32 [n, layers, dim]; the whole is heard at the first call.

        Raises:
            RuntimeError: the sound has not ended.
        """
        if not self._finished:
            raise RuntimeError("a whole file is listened to when it has ended")
        if self._read is None:
            self._read, self._buffer = self._listen(torch.from_numpy(self._buffer)), np.zeros(0, np.float32)
        wanted = torch.tensor([nearest_read(self._frame + k, self.fps) for k in range(n)])
        heard = wanted < self._read.shape[1]
        return self._take(self._read[:, wanted.clamp(max=self._read.shape[1] - 1)] * heard[None, :, None])

    def _listen(self, samples: Tensor) -> Tensor:
        """[n] to 30 readings a second [layers, m, dim], from the first state to the last."""
        samples = samples.double()
        samples = normalised(samples, float(samples.mean()), float(samples.var(unbiased=False)))
        states = self._model().states(F.pad(samples, (0, max(0, FIELD - len(samples))))).cpu()
        count = max(1, states.shape[1] * READ_PER_SECOND // STATES_PER_SECOND)
        return F.interpolate(states.transpose(1, 2), size=count, mode="linear", align_corners=True).transpose(1, 2)


class Listening(Features):
    """Sound that goes on: every chunk of frames is heard in a window that ends with it, or `lookahead_s` after it.

    Loudness is normalised by all that was heard so far, which in a long stream is what a whole file would give. A
    window does not reach back beyond the beginning of the sound; after its end there is silence.

    Args:
        model, config, fps: as for `Features`.
        lookahead_s: how far sound is waited for beyond a chunk's last frame, in seconds.
    """

    def __init__(self, model: Callable[[], Wav2Vec], config: Wav2VecConfig, fps: float, lookahead_s: float = 0.0):
        super().__init__(model, config, fps)
        self.window, self.lookahead = round(config.window_s * RATE), round(lookahead_s * RATE)
        self._counted, self._sum, self._squares = 0, 0.0, 0.0

    @property
    def progress(self) -> tuple[dict[str, Any], np.ndarray]:
        """What another goes on from: (counters, samples held)."""
        content, buffer = super().progress
        return content | {"loudness": [self._counted, self._sum, self._squares]}, buffer

    def resume(self, content: dict[str, Any], buffer: np.ndarray) -> None:
        """Go on from the progress of another listener."""
        super().resume(content, buffer)
        self._counted, self._sum, self._squares = content["loudness"]

    @property
    def seen(self) -> int:
        """Absolute number of the first sample that is neither held nor behind."""
        return max(super().seen, self._end(self._frame))

    def needed(self, n: int) -> int:
        """How many samples are missing before `frames(n)` can answer; 0 after `finish()`."""
        if self._finished or n == 0:
            return 0
        return max(0, self._end(self._frame + n) - self._start - len(self._buffer))

    def frames(self, n: int) -> np.ndarray:
        """Hidden states of the next `n` video frames: float32 [n, layers, dim].

        Raises:
            RuntimeError: samples are missing (see `needed`).
        """
        if missing := self.needed(n):
            raise RuntimeError(f"{missing} samples are missing for {n} frames from frame {self._frame} on")
        # Exactly: reading i stands 5/3 i states from the start.
        places = [
            Fraction(nearest_read(self._frame + k, self.fps) * STATES_PER_SECOND, READ_PER_SECOND) for k in range(n)
        ]
        end, first = self._end(self._frame + n), self._window_start(n)
        mean, variance = self._loudness(end)
        heard = torch.from_numpy(self._between(first, end))
        states = self._model().states(normalised(heard, mean, variance))
        taken = self._take(_between_states(states, [p - first // HOP for p in places]))
        self._forget()
        return taken

    def skip(self, n: int) -> None:
        """Go on as if the next `n` video frames had been asked for."""
        self._loudness(self._end(self._frame + n))
        super().skip(n)
        self._forget()

    def _end(self, frame: int) -> int:
        """Absolute number of the sample that a chunk before video frame `frame` no longer sees."""
        return math.floor(frame * RATE / self.fps) + self.lookahead

    def _window_start(self, n: int) -> int:
        """The window of the next `n` frames starts where a state does, and before all of theirs."""
        first = nearest_read(self._frame, self.fps) * STATES_PER_SECOND // READ_PER_SECOND
        return max(0, min(first, (self._end(self._frame + n) - self.window) // HOP)) * HOP

    def _between(self, first: int, end: int) -> np.ndarray:
        """Samples [first, end), silence where there are none, and never less than one state's."""
        held = self._buffer[first - self._start : max(0, end - self._start)]
        return np.pad(held, (0, max(end - first, FIELD) - len(held)))

    def _loudness(self, end: int) -> tuple[float, float]:
        """Mean and variance of all that was heard before sample `end`; silence after the end of the sound is not."""
        new = self._buffer[self._counted - self._start : max(0, end - self._start)].astype(np.float64)
        self._counted += len(new)
        self._sum, self._squares = self._sum + float(new.sum()), self._squares + float((new * new).sum())
        count = max(1, self._counted)
        mean = self._sum / count
        return mean, max(0.0, self._squares / count - mean * mean)

    def _forget(self) -> None:
        """Drop the samples that no coming window looks at, and that are counted."""
        drop = min(max(0, min(self._window_start(0), self._counted) - self._start), len(self._buffer))
        self._buffer = self._buffer[drop:]
        self._start += drop


def _between_states(states: Tensor, places: Sequence[Fraction]) -> Tensor:
    """States [layers, T, dim] at places between 0 and T - 1, linearly between neighbours: [layers, n, dim]."""
    last, upload = states.shape[1] - 1, devices.of(states.device).upload
    low = torch.tensor([math.floor(p) for p in places])
    share = torch.tensor([float(p - math.floor(p)) for p in places], dtype=states.dtype)
    before, after = (states[:, upload(i.clamp(max=last))] for i in (low, low + 1))
    return torch.lerp(before, after, upload(share)[None, :, None])
