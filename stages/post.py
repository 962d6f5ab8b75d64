"""Decoded frames to pictures."""

from __future__ import annotations

import torch
from numpy import ndarray
from torch import Tensor


def to_pictures(frames: Tensor) -> ndarray:
    """[1, 3, n, H, W] in [-1, 1] to uint8 [n, H, W, 3], rounded."""
    pixels = frames[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
