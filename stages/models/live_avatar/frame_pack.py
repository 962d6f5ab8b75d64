"""Motion tokens: what was seen before a stream began, packed the more tightly the older it is.

FramePack (arXiv 2504.12626) as Wan2.2-S2V uses it. The tokens stand at fixed positions before frame 0 and stay there
while the stream goes on.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.rope import Rope
from stages.dit.patches import embed
from stages.models.live_avatar.buckets import BUCKETS, FRAMES


def packed_table(rope: Rope) -> Tensor:
    """Rotation of all motion tokens: row and column positions are spread over the whole picture, truncated."""

    def spread(count: int, scale: int) -> list[int]:
        return np.linspace(0, count - 1, count // scale).astype(int).tolist()

    return torch.cat([rope.points(b.times, spread(rope.rows, b.scale), spread(rope.columns, b.scale)) for b in BUCKETS])


class FramePack(nn.Module):
    """The convolutions, under their published names.

    Args:
        channels: of a latent.
        dim: width of a token.
        patch: of the network, (frames, rows, columns).
    """

    def __init__(self, channels: int, dim: int, patch: list[int]):
        super().__init__()
        for bucket in BUCKETS:
            kernel = tuple(size * bucket.scale for size in patch)
            self.add_module(bucket.name, nn.Conv3d(channels, dim, kernel, kernel))

    def forward(self, motion: Tensor) -> Tensor:
        """Latents [B, C, n, h, w], oldest first, to tokens [B, N, d]; the last 19 count, missing ones are zeros."""
        motion = F.pad(motion[:, :, -FRAMES:], (0, 0, 0, 0, max(0, FRAMES - motion.shape[2]), 0))
        parts = zip(BUCKETS, motion.split([b.frames for b in reversed(BUCKETS)], dim=2)[::-1], strict=True)
        return torch.cat([embed(frames, getattr(self, bucket.name)) for bucket, frames in parts], 1)
