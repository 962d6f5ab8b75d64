"""How much noise enters with a chunk of video to video: less where more moves, so that what moves is kept.

The rule is that of StreamDiffusionV2 (arXiv 2511.07399) as its code has it: pictures in [-1, 1], pairs of frames, the
one before the chunk included.

    d = max over pairs of RMS(frame_k - frame_(k-1))      over channels, height and width
    s = 0.9 (s0 - 0.1 clip(d / 0.2, 0, 1)) + 0.1 s_before
    timestep of the first step = floor(1000 s) - 100

The network is told less noise than there is, as it was trained. All of it is float64: a still video sits exactly on
s = s0, where float32 would round the timestep down by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

FASTEST = 0.2
"""RMS at and beyond which all is motion."""
SPAN = 0.1
"""By how much motion lowers the level, at most."""
KEPT = 0.1
"""Share of the level that is that of the chunk before."""
STEPS, BELOW = 1000, 100
"""Timesteps of level 1, and how many fewer the network is told."""


class Level(NamedTuple):
    """Of one chunk.

    Attributes:
        level: share of noise in what enters.
        timestep: of the first step, of 1000; None: the configured one.
    """

    level: float
    timestep: float | None


class Motion:
    """The levels of one stream.

    Args:
        scale: s0, `model.noise_scale`.

    Attributes:
        before: level of the chunk before.
        last: its last picture, float32 [3, H, W]; None: there was no chunk.
    """

    def __init__(self, scale: float):
        self.scale = self.before = scale
        self.last: Tensor | None = None

    def next(self, pictures: Tensor) -> Level:
        """The level of the next chunk, of pictures float32 [3, n, H, W] in [-1, 1]; the first one's is configured."""
        last, self.last = self.last, pictures[:, -1].clone()
        if last is None:
            return Level(self.scale, None)
        moved = min(max(fastest(pictures, last) / FASTEST, 0.0), 1.0)
        self.before = (1 - KEPT) * (self.scale - SPAN * moved) + KEPT * self.before
        return Level(self.before, float(math.floor(STEPS * self.before) - BELOW))


def fastest(pictures: Tensor, last: Tensor) -> float:
    """The largest RMS between a picture of [3, n, H, W] and the one before it, which is `last` [3, H, W] at first."""
    before, found = last.numpy().astype(np.float64), 0.0
    for picture in pictures.unbind(1):
        now = picture.numpy().astype(np.float64)
        # numpy's sums do not depend on the number of threads, as torch's may.
        found = max(found, float(np.sqrt(np.mean(np.square(now - before)))))
        before = now
    return found
