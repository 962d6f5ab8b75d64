"""One picture that shows a whole stream: frames evenly spread over it, each with its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from conf import disk
from stages.rate import frame_rate

MARGIN, GAP, LINE = 24, 12, 20  # pixels
PAPER, INK = (250, 249, 246), (90, 90, 90)
CELL_WIDTH = 240  # wider frames are scaled down


class ContactSheet:
    """A bounded, evenly spread sample of an endless stream, on one sheet.

    Every `stride`-th frame is kept; when there are twice as many as the sheet holds, every second one is dropped and
    the stride doubles. So memory is constant, and the sheet shows the stream from its first frame on.

    Args:
        columns: frames in a row.
        rows: rows on the sheet.
        fps: frames per second, for the time stamps; None stamps frame numbers.
    """

    def __init__(self, columns: int = 6, rows: int = 3, fps: float | None = None):
        self.columns, self.rows = columns, rows
        self.stride = 1
        self._fps = None if fps is None else frame_rate(fps)
        self._seen = 0
        self._kept: list[tuple[int, Image.Image]] = []

    def add(self, frames: np.ndarray) -> None:
        """Take notice of frames, uint8 [n, H, W, 3] RGB."""
        for i in range(-self._seen % self.stride, len(frames)):
            number = self._seen + i
            if number % self.stride:
                continue
            self._kept.append((number, _small(frames[i])))
            if len(self._kept) > 2 * self.columns * self.rows:
                self._kept = self._kept[::2]
                self.stride *= 2
        self._seen += len(frames)

    @property
    def chosen(self) -> list[int]:
        """Numbers of the frames that the sheet shows."""
        return [number for number, _ in self._chosen()]

    def save(self, path: str | Path) -> None:
        """Write the sheet as PNG, in a folder that is made; without a single frame nothing is written.

        Raises:
            UserError: the file cannot be written.
        """
        chosen = self._chosen()
        if not chosen:
            return
        with disk.writing(f"sink.contact_sheet={path}"), disk.replacing(disk.prepare(path)) as aside:
            self._drawn(chosen).save(aside, format="PNG")

    def _chosen(self) -> list[tuple[int, Image.Image]]:
        """At most as many of the kept frames as there are cells, first and last among them."""
        cells = min(self.columns * self.rows, len(self._kept))
        last = len(self._kept) - 1
        return [self._kept[round(i * last / max(1, cells - 1))] for i in range(cells)]

    def _drawn(self, chosen: list[tuple[int, Image.Image]]) -> Image.Image:
        width = max(picture.width for _, picture in chosen)
        height = max(picture.height for _, picture in chosen)
        columns = min(self.columns, len(chosen))
        rows = -(-len(chosen) // columns)
        size = (
            2 * MARGIN + columns * width + (columns - 1) * GAP,
            2 * MARGIN + rows * (height + LINE) + (rows - 1) * GAP,
        )
        sheet = Image.new("RGB", size, PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
        for i, (number, picture) in enumerate(chosen):
            x = MARGIN + i % columns * (width + GAP)
            y = MARGIN + i // columns * (height + LINE + GAP)
            sheet.paste(picture, (x, y))
            draw.text((x, y + height + 4), self._stamp(number), fill=INK, font=font)
        return sheet

    def _stamp(self, number: int) -> str:
        """1:02:03.4, or the frame's number."""
        if self._fps is None:
            return f"frame {number}"
        tenths = int(number * 10 / self._fps)
        minutes, hours = tenths // 600, tenths // 36000
        seconds = f"{tenths % 600 // 10:02d}.{tenths % 10}"
        return f"{hours}:{minutes % 60:02d}:{seconds}" if hours else f"{minutes}:{seconds}"


def _small(frame: np.ndarray) -> Image.Image:
    """A copy of the frame, at most as wide as a cell."""
    picture = Image.fromarray(np.array(frame))
    if picture.width > CELL_WIDTH:
        height = max(1, round(picture.height * CELL_WIDTH / picture.width))
        picture = picture.resize((CELL_WIDTH, height), Image.Resampling.LANCZOS)
    return picture
