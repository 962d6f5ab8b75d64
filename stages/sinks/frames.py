"""Frames to a folder of PNG files, one each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from conf import disk


class FramesSink:
    """Lossless pictures `frame.00000000.png`, `frame.00000001.png`, ...

    Args:
        folder: made if it is missing; pictures in it with these names are replaced.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path):
        self._name = f"sink.frames={folder}"
        self.frames = 0  # written so far
        with disk.writing(self._name):
            self.folder = disk.folder(folder)

    def write(self, frames: np.ndarray) -> None:
        """Append frames, uint8 [n, H, W, 3] RGB.

        Raises:
            UserError: the disk refuses; pictures written so far are whole.
            ValueError: another dtype or shape.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 [n, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        for frame in frames:
            path = self.folder / f"frame.{self.frames:08d}.png"
            with disk.writing(self._name), disk.replacing(path) as aside:
                Image.fromarray(frame).save(aside, format="PNG", compress_level=1)
            self.frames += 1

    def close(self) -> None:
        """Nothing is held open."""
