"""Pictures as a camera sends them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(value: int, height: int = 48, width: int = 64) -> bytes:
    """One that is `value` bright all over."""
    made = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(made, "JPEG", quality=90)
    return made.getvalue()


def brightness(frames: np.ndarray) -> list[int]:
    """Of each frame of [n, H, W, 3], in its middle."""
    return [int(frame[frame.shape[0] // 2, frame.shape[1] // 2].mean()) for frame in frames]
