"""Drawing with signed distances: many frames at once, edges one pixel soft at any resolution.

A signed distance is negative inside a shape. All coordinates are picture units: x to the right and y down from the
middle, the same at any resolution. Arrays are [n, H, W] (or broadcast to it), float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class View:
    """A rectangle of the picture in which something is drawn: `canvas` [n, h, w, 3] and its pixel centres."""

    canvas: np.ndarray
    x: np.ndarray
    y: np.ndarray
    pixel: float

    def crop(self, left: float, top: float, right: float, bottom: float) -> View:
        """The part between those edges (picture units), with a pixel to spare; drawing there costs less."""
        rows = slice(*np.searchsorted(self.y[0, :, 0], (top - self.pixel, bottom + self.pixel)))
        columns = slice(*np.searchsorted(self.x[0, 0, :], (left - self.pixel, right + self.pixel)))
        return View(self.canvas[:, rows, columns], self.x[:, :, columns], self.y[:, rows], self.pixel)

    def paint(self, distance: np.ndarray, colour, alpha: float | np.ndarray = 1.0) -> None:
        """Cover what lies inside with `colour` ([3], or broadcast to [n, h, w, 3]), in 0 ... 255."""
        cover = alpha * np.clip(0.5 - distance / self.pixel, 0, 1)
        colour = np.asarray(colour, np.float32)
        # One channel after another: numpy is several times faster on planes than on broadcast triples.
        for channel in range(3):
            plane = self.canvas[..., channel]
            plane += cover * (colour[..., channel] - plane)


def blank(frames: int, size: int, reach: float = 1.0) -> View:
    """Black pictures of `size` x `size` pixels, with edges at -reach and reach."""
    centres = (((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1) * np.float32(reach)
    canvas = np.zeros((3, frames, size, size), np.float32).transpose(1, 2, 3, 0)
    return View(canvas, centres[None, None, :], centres[None, :, None], 2.0 * reach / size)


def ellipse(x: np.ndarray, y: np.ndarray, rx, ry) -> np.ndarray:
    """Around the origin; accurate near the edge, where it matters."""
    a, b = x / rx, y / ry
    near = a * a + b * b
    slope = np.sqrt((a / rx) ** 2 + (b / ry) ** 2)
    estimate = (near - 1) / (2 * slope + 1e-4)
    # The estimate fails beyond the tips of thin ellipses; the box around them is a bound that holds everywhere.
    bound = np.maximum(np.abs(x) - rx, np.abs(y) - ry)
    return np.where(bound > 0, np.maximum(estimate, bound), estimate)


def capsule(x: np.ndarray, y: np.ndarray, x0, y0, x1, y1, radius) -> np.ndarray:
    """A thick line with round ends."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(x - x0 - t * dx, y - y0 - t * dy) - radius


def box(x: np.ndarray, y: np.ndarray, rx, ry, corner) -> np.ndarray:
    """A rounded rectangle around the origin."""
    qx, qy = np.abs(x) - rx + corner, np.abs(y) - ry + corner
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def ring(distance: np.ndarray, thickness) -> np.ndarray:
    """The outline of a shape."""
    return np.abs(distance) - thickness / 2
