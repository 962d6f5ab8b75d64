"""Which frames of the time before a stream are packed, and how tightly: FramePack (arXiv 2504.12626).

Of the last 19 latent frames the newest keeps its patches, the two before it are halved and the sixteen before those
quartered along time, rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Bucket(NamedTuple):
    """Some of the frames, packed by one convolution.

    Attributes:
        name: of the convolution in the checkpoint.
        first: position of its oldest frame.
        frames: latent frames.
        scale: how many frames, rows and columns of patches one token stands for.
    """

    name: str
    first: int
    frames: int
    scale: int

    @property
    def times(self) -> list[int]:
        """Temporal position of each frame of tokens, spread from the oldest frame to the newest, truncated to 0."""
        ends = -self.first, -self.first - self.frames + 1
        return [-int(t) for t in np.linspace(*ends, self.frames // self.scale)]


BUCKETS = (Bucket("proj", -1, 1, 1), Bucket("proj_2x", -3, 2, 2), Bucket("proj_4x", -19, 16, 4))
"""Newest first: the order of the tokens."""
FRAMES = sum(bucket.frames for bucket in BUCKETS)
"""Latent frames that are packed."""
UNIT = max(bucket.scale for bucket in BUCKETS)
"""Rows and columns of tokens must be multiples of it."""


def packed_tokens(tokens: int) -> int:
    """Motion tokens where a latent frame has `tokens`."""
    return sum(b.frames // b.scale * (tokens // b.scale**2) for b in BUCKETS)
