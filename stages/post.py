"""What is done to decoded frames before they are put out, and how they become pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from conf.schema import Config


class Upscale:
    """Enlarges every frame by bicubic interpolation. It remembers nothing from frame to frame.

    Args:
        scale: new pixels per pixel, each way.
    """

    def __init__(self, scale: int):
        self.scale = scale

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """[1, 3, n, H, W] to [1, 3, n, scale H, scale W], both in [-1, 1]."""
        _, channels, count, height, width = frames.shape
        if not count:
            return frames.new_empty(1, channels, 0, self.scale * height, self.scale * width)
        each = frames[0].transpose(0, 1).float()
        larger = F.interpolate(each, scale_factor=self.scale, mode="bicubic", align_corners=False).clamp(-1, 1)
        return larger.to(frames.dtype).transpose(0, 1)[None]


def post_of(config: Config) -> Callable[[Tensor], Tensor] | None:
    """What is done to decoded frames, where anything is."""
    return Upscale(config.post.scale) if config.post.name == "upscale" and config.sink.needs_frames else None


def to_pictures(frames: Tensor) -> ndarray:
    """[1, 3, n, H, W] in [-1, 1] to uint8 [n, H, W, 3], rounded."""
    pixels = frames[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
