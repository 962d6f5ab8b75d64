"""Rays: what the network is told of a camera, for every pixel, made of a few numbers for each latent frame.

Poses are of a camera in the world, in OpenCV's axes (x right, y down, z forward), and the network is told steps: the
pose of a latent frame as the camera of the latent frame before sees it. So it makes no difference where the world's
origin is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.inputs import FRAMES_PER_LATENT, Views
from stages.models.lingbot.sizes import PIXELS

POSE, LENS, KEYS = 12, 4, 4
"""Numbers of a latent frame: its step, the upper three rows of a 4x4 matrix, row by row; focal lengths and principal
point (fx, fy, cx, cy), in the picture's width and height; and of the control `act` keys that move the camera."""


def numbers(views: Views, scale: float, act: bool) -> Tensor:
    """What is sent of a chunk's views: float32 [1, f, 16], with keys [1, f, 20].

    Latent frame L shows video frame 4 L, and its step is C_{4 (L - 1)}^-1 C_{4 L}.

    Args:
        scale: what translations are divided by (`model.translation_scale`).
        act: whether keys are told.
    """
    at = views.poses[::FRAMES_PER_LATENT]
    steps = np.linalg.inv(at[:-1]) @ at[1:]
    steps[:, :3, 3] /= scale
    told = [steps[:, :3].reshape(len(steps), POSE), views.intrinsics[FRAMES_PER_LATENT::FRAMES_PER_LATENT]]
    if act:
        told.append(np.asarray(views.rows, np.float64)[FRAMES_PER_LATENT - 1 :: FRAMES_PER_LATENT, :KEYS])
    return torch.from_numpy(np.concatenate(told, 1)).float()[None]


def rays(camera: Tensor, rows: int, columns: int, act: bool) -> Tensor:
    """Ray channels of latent frames: float32 [1, channels * 64, f, rows, columns].

    A pixel's direction is ((u - cx) / fx, (v - cy) / fy, 1) at its middle, of length 1, turned as the step turns; its
    origin is the step's translation. The 8x8 pixels of a place of the latent become channels: channel, row, column.

    Args:
        camera: what `numbers` gave, float32 [1, f, 16 or 20], on any device.
        rows, columns: of the latent.
        act: whether a pixel has directions and keys, instead of origins and directions.
    """
    step, lens, keys = camera[0].split([POSE, LENS, camera.shape[-1] - POSE - LENS], -1)
    turn, moved = step.unflatten(-1, (3, 4)).split([3, 1], -1)
    fx, fy, cx, cy = lens[..., None].unbind(1)
    x = ((_middles(columns, camera) - cx) / fx)[:, None, None, :]
    y = ((_middles(rows, camera) - cy) / fy)[:, None, :, None]
    # Written out: a product of matrices might round to fewer digits.
    across, down, ahead = turn[..., None, None].unbind(2)
    direction = (across * x + down * y + ahead) / (x * x + y * y + 1).sqrt()
    beside = (keys if act else moved[..., 0])[..., None, None].expand(-1, -1, *direction.shape[-2:])
    pixels = torch.cat([direction, beside] if act else [beside, direction], 1)
    return F.pixel_unshuffle(pixels, PIXELS).transpose(0, 1)[None]


def _middles(places: int, like: Tensor) -> Tensor:
    """Where the middles of pixels are along a side, of its length."""
    count = places * PIXELS
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
