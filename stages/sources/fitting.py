"""A decoded picture, fitted to the stream's size: upright, its pixels square, whole or cut to the middle."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

SQUARE = Fraction(1)
"""Width of a pixel, by its height, where a file does not say it."""
TURN = 90
"""Degrees by which metadata turns pictures: other angles are taken for the nearest multiple."""


@dataclass(frozen=True)
class Fit:
    """How pictures come to one size.

    Attributes:
        height, width: of the result, in pixels.
        how: `letterbox`, the whole picture between black bars; `crop`, what is left of it when it covers the result,
            around its centre.
    """

    height: int
    width: int
    how: str = "letterbox"

    def __call__(self, frame: av.VideoFrame, aspect: Fraction = SQUARE) -> np.ndarray:
        """RGB, uint8 [height, width, 3].

        Args:
            frame: as it was decoded, of any size and format.
            aspect: width of its pixels by their height.
        """
        turns = round(frame.rotation / TURN) % 4
        height, width = (self.width, self.height) if turns % 2 else (self.height, self.width)
        rows, columns = self._scaled(frame.height, frame.width * aspect, height, width)
        pixels = frame.to_ndarray(format="rgb24", height=rows, width=columns, interpolation="BICUBIC")
        # rot90 turns against the clock, as the metadata's angle does.
        return np.rot90(_centred(pixels, height, width), turns)

    def _scaled(self, rows: int, columns: Fraction, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the whole picture, scaled to lie within the result or to cover it."""
        scales = Fraction(height, rows), width / columns
        if self.how == "crop":
            scale = max(scales)
            return max(height, round(rows * scale)), max(width, round(columns * scale))
        scale = min(scales)
        return _within(rows * scale, height), _within(columns * scale, width)


def _within(size: Fraction, most: int) -> int:
    return min(most, max(1, round(size)))


def _centred(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture [rows, columns, 3], or the picture in the middle of black: [height, width, 3]."""
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width):
        return pixels
    top, left = max(0, (rows - height) // 2), max(0, (columns - width) // 2)
    pixels = pixels[top : top + height, left : left + width]
    rows, columns = pixels.shape[:2]
    top, left = (height - rows) // 2, (width - columns) // 2
    found = np.zeros((height, width, 3), np.uint8)
    found[top : top + rows, left : left + columns] = pixels
    return found
