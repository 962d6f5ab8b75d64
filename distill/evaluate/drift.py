"""How a long video changes over time: its brightness, contrast and sharpness, segment by segment, and their slopes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

QUANTITIES = ("mean", "variance", "sharpness")


def look(frames: np.ndarray) -> np.ndarray:
    """[n, 3] of frames uint8 [n, H, W, 3]: mean, variance over a frame's pixels, and mean absolute Laplacian of grey
    values 0 ... 1."""
    grey = frames.astype(np.float32).mean(axis=3) / 255
    inner = grey[:, 1:-1, 1:-1]
    laplacian = 4 * inner - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    return np.stack([grey.mean((1, 2)), grey.var((1, 2)), np.abs(laplacian).mean((1, 2))], axis=1)


def slope(values: np.ndarray, minutes: float) -> float:
    """The slope of a straight line through segments' values [n], in percent of the first per minute.

    Args:
        values: one per segment.
        minutes: length of a segment.
    """
    times = (np.arange(len(values)) - (len(values) - 1) / 2) * minutes
    rise = float((times * (values - values.mean())).sum() / np.square(times).sum())
    return 100 * rise / float(values[0])


@dataclass
class Segments:
    """Means of what was measured of every frame, per segment of a stream.

    Attributes:
        length: frames of a segment; an unfinished last one is left out.
        fps: frames per second.
    """

    length: int
    fps: float
    _sums: list[np.ndarray] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _frames: int = 0

    def add(self, frames: np.ndarray) -> None:
        """The next frames of the stream."""
        for at, row in zip(range(self._frames, self._frames + len(frames)), look(frames), strict=True):
            if at // self.length == len(self._sums):
                self._sums.append(np.zeros(len(QUANTITIES)))
                self._counts.append(0)
            self._sums[-1] += row
            self._counts[-1] += 1
        self._frames += len(frames)

    def values(self) -> dict[str, np.ndarray]:
        """By quantity, one value per whole segment."""
        whole = [s / c for s, c in zip(self._sums, self._counts, strict=True) if c == self.length]
        return {name: np.array([row[i] for row in whole]) for i, name in enumerate(QUANTITIES)}

    def slopes(self) -> dict[str, float]:
        """Percent of the first segment's value per minute, by quantity; none of fewer than three segments."""
        minutes = self.length / self.fps / 60
        return {name: slope(v, minutes) for name, v in self.values().items() if len(v) > 2}
