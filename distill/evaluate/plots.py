"""Small line plots, with Pillow only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 220, 64, 30, 26
PAPER, INK, FAINT = (250, 249, 246), (52, 52, 56), (205, 200, 190)
LINES = (
    (88, 100, 190), (214, 84, 62), (94, 158, 96), (150, 110, 60), (120, 120, 124), (232, 160, 40), (60, 170, 190),
    (160, 80, 170), (20, 20, 24), (240, 130, 170), (120, 190, 60), (30, 90, 60),
)  # fmt: skip
SCALE = 2


def draw(
    title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, named: bool = True
) -> Image.Image:
    """A plot of lines by name, each as (x, y); `named`: with their names in its first row, where few fit."""
    s = SCALE
    image = Image.new("RGB", (WIDTH * s, HEIGHT * s), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * s)
    xs = [x for line in lines.values() for x in line[0]]
    ys = [y for line in lines.values() for y in line[1]]
    (x0, x1), (y0, y1) = (min(xs), max(max(xs), min(xs) + 1e-9)), _range(ys)
    box = LEFT * s, TOP * s, (WIDTH - 14) * s, (HEIGHT - BOTTOM) * s

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            box[0] + (x - x0) / (x1 - x0) * (box[2] - box[0]),
            box[3] - (y - y0) / (y1 - y0) * (box[3] - box[1]),
        )

    for share in (0, 0.5, 1):
        y = y0 + share * (y1 - y0)
        pen.line([at(x0, y), at(x1, y)], fill=FAINT, width=s)
        pen.text((8 * s, at(x0, y)[1] - 7 * s), f"{y:.4g}", fill=INK, font=font)
    pen.text((LEFT * s, 8 * s), title, fill=INK, font=font)
    for x, anchor in ((x0, "la"), (x1, "ra")):
        pen.text((at(x, y0)[0], box[3] + 6 * s), f"{x:.4g}", fill=INK, font=font, anchor=anchor)
    pen.text(((box[0] + box[2]) / 2, box[3] + 6 * s), across, fill=INK, font=font, anchor="ma")
    right = box[2]
    for colour, (name, (x, y)) in reversed(list(zip(LINES, lines.items(), strict=False))):
        pen.line([at(*point) for point in zip(x, y, strict=True)], fill=colour, width=2 * s)
        if named:
            pen.text((right, 8 * s), name, fill=colour, font=font, anchor="ra")
            right -= pen.textlength(name, font=font) + 14 * s
    return image


def key(names: Sequence[str], across: int = 4) -> Image.Image:
    """The names of lines in their colours, a few in a row, for plots that have too many."""
    s, row = SCALE, 18
    image = Image.new("RGB", (WIDTH * s, (row * -(-len(names) // across) + 10) * s), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * s)
    for i, (colour, name) in enumerate(zip(LINES, names, strict=False)):
        x, y = (10 + i % across * (WIDTH - 20) // across) * s, (6 + i // across * row) * s
        pen.rectangle([x, y + 5 * s, x + 12 * s, y + 9 * s], fill=colour)
        pen.text((x + 17 * s, y), name, fill=INK, font=font)
    return image


def strip(path: str | Path, rows: Mapping[str, Sequence[np.ndarray]], heads: Sequence[str], side: int = 112) -> None:
    """A film strip by name, of pictures uint8 [H, W, 3] below `heads`, as one PNG."""
    left, top, gap = 116, 22, 4
    image = Image.new("RGB", (left + len(heads) * (side + gap), top + len(rows) * (side + gap)), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for i, head in enumerate(heads):
        pen.text((left + i * (side + gap) + side / 2, 3), head, fill=INK, font=font, anchor="ma")
    for j, (name, pictures) in enumerate(rows.items()):
        y = top + j * (side + gap)
        pen.text((8, y + side / 2), name, fill=INK, font=font, anchor="lm")
        for i, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            image.paste(shown, (left + i * (side + gap), y))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.quantize(200).save(path, optimize=True)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values take up, never nothing."""
    lo, hi = min(values), max(values)
    room = 0.05 * (hi - lo) or 0.05 * abs(hi) or 1.0
    return lo - room, hi + room


def stack(path: str | Path, plots: Sequence[Image.Image]) -> None:
    """Plots below each other as one PNG."""
    whole, y = Image.new("RGB", (WIDTH * SCALE, sum(plot.height for plot in plots)), PAPER), 0
    for plot in plots:
        whole.paste(plot, (0, y))
        y += plot.height
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(32).save(path, optimize=True)
