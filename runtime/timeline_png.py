"""A picture of the pipeline as it fills and runs, drawn from `trace.json`: one track per worker, one box per span.

Reads what `runtime.trace` writes, also where the end is missing. Pillow only.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from conf import disk

FIRST_CHUNKS = 8
"""Without a given time the picture ends with this many chunks of the trace: filling, and steady running."""

# Pixels.
WIDTH, MARGIN = 1600, 36
TRACK, GAP = 46, 14
TITLE, LEGEND, AXIS = 44, 34, 40
TICK_EVERY = 110
"""Time stamps are at least this far apart."""

PAPER, LANE, INK, FAINT, GRID = (250, 249, 246), (241, 239, 234), (52, 52, 56), (120, 120, 124), (224, 221, 214)
WAITING = {"wait": (231, 228, 221), "send": (205, 200, 190)}
DECODE, POST, OUTPUT, ENCODE = (94, 158, 96), (126, 178, 122), (158, 196, 150), (150, 150, 160)
ACCENT = (214, 84, 62)
# Light blue to dark violet: neighbours on a route look alike, the first and the last do not.
STEPS = ((133, 190, 228), (92, 146, 214), (88, 100, 190), (104, 68, 158))
KNOWN = {
    "encode": ENCODE,
    "prefill": ACCENT,
    "commit": ACCENT,
    "recache": ACCENT,
    "decode": DECODE,
    "post": POST,
    "output": OUTPUT,
}
LAST = ("prefill", "commit", "recache", "encode", "decode", "post", "output", "wait", "send")
"""The legend's order, after the steps."""


class Box(NamedTuple):
    """A span of a trace; times in seconds since the first of all."""

    track: int
    stage: str
    chunk: int
    start: float
    end: float


def _lines(text: str) -> list[dict]:
    """Whole events of a trace, one a line; a last line that was cut is left out."""
    found = []
    for line in text.splitlines():
        try:
            event = json.loads(line.strip().rstrip(","))
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def read(trace: Path) -> tuple[dict[int, str], list[Box]]:
    """A trace's tracks by number, and its spans in the order they begin.

    A stage is named as in the trace, less the block (`step2`, of `step2.block1`).

    Raises:
        OSError: the file cannot be read.
    """
    events = _lines(trace.read_text(errors="replace"))
    names = {e["tid"]: e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    spans = [e for e in events if e.get("ph") == "X"]
    opened = min((e["ts"] for e in spans), default=0)
    boxes = [
        Box(e["tid"], e["name"].split(".")[0], e["args"]["chunk"], (e["ts"] - opened) / 1e6, 0.0)._replace(
            end=(e["ts"] + e["dur"] - opened) / 1e6
        )
        for e in spans
    ]
    names = {track: names.get(track, f"track {track}") for track in sorted({*names, *(b.track for b in boxes)})}
    return names, sorted(boxes, key=lambda b: (b.start, b.end))


def shown(boxes: list[Box], first_s: float | None) -> tuple[float, float]:
    """From and to when the picture goes, in seconds: from the first work, not from the wait before it."""
    work = [b for b in boxes if b.stage not in WAITING]
    if not work:
        return 0.0, max((b.end for b in boxes), default=1.0)
    begin = min(b.start for b in work)
    if first_s is not None:
        return begin, begin + first_s
    first = min((b.chunk for b in work if b.chunk >= 0), default=0)
    return begin, max((b.end for b in work if 0 <= b.chunk - first < FIRST_CHUNKS), default=max(b.end for b in work))


def colour(stage: str, steps: int) -> tuple[int, int, int]:
    """A stage's fill; steps run from light to dark over all `steps` of them."""
    number = re.fullmatch(r"step(\d+)", stage)
    if number is None:
        return KNOWN.get(stage) or WAITING.get(stage, FAINT)
    at = int(number[1]) / max(1, steps - 1) * (len(STEPS) - 1)
    low = min(int(at), len(STEPS) - 2)
    return tuple(round(a + (b - a) * (at - low)) for a, b in zip(STEPS[low], STEPS[low + 1], strict=True))


def _ticks(span_s: float, room: float) -> float:
    """Seconds between time stamps: 1, 2 or 5 times a power of ten, at most `room` stamps."""
    rough = span_s / max(1.0, room)
    power = 10 ** math.floor(math.log10(rough))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)


class _Picture:
    """The sheet, and where times and tracks are on it."""

    def __init__(self, names: dict[int, str], boxes: list[Box], span: tuple[float, float]):
        self.names, self.boxes, (self.begin, self.end) = names, boxes, span
        self.font, self.small, self.large = (ImageFont.load_default(size=s) for s in (14, 12, 18))
        self.left = MARGIN + 16 + max((round(self.font.getlength(n)) for n in names.values()), default=0)
        self.top = MARGIN + TITLE + LEGEND
        self.bottom = self.top + len(names) * (TRACK + GAP)
        self.image = Image.new("RGB", (WIDTH, self.bottom + AXIS + MARGIN), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.rows = {track: self.top + i * (TRACK + GAP) for i, track in enumerate(names)}
        self.steps = 1 + max((int(b.stage[4:]) for b in boxes if re.fullmatch(r"step\d+", b.stage)), default=0)

    def x(self, time: float) -> float:
        """Where a time is."""
        return self.left + (time - self.begin) / (self.end - self.begin) * (WIDTH - MARGIN - self.left)

    def axis(self) -> None:
        """Grid lines, time stamps and lanes."""
        every = _ticks(self.end - self.begin, (WIDTH - MARGIN - self.left) / TICK_EVERY)
        for track, y in self.rows.items():
            self.draw.rectangle((self.left, y, WIDTH - MARGIN, y + TRACK), fill=LANE)
            self.draw.text((MARGIN, y + TRACK / 2), self.names[track], fill=INK, font=self.font, anchor="lm")
        digits = max(0, -math.floor(math.log10(every)))
        for i in range(int((self.end - self.begin) / every * 1.0001) + 1):
            x = self.x(self.begin + i * every)
            self.draw.line((x, self.top - 6, x, self.bottom + 2), fill=GRID)
            self.draw.text((x, self.bottom + 8), f"{i * every:.{digits}f}", fill=FAINT, font=self.small, anchor="ma")
        middle = (self.left + WIDTH - MARGIN) / 2
        self.draw.text((middle, self.bottom + 26), "seconds", fill=FAINT, font=self.small, anchor="ma")

    def box(self, box: Box) -> None:
        """A span: waiting flat, work tall, a chunk's number inside where it fits."""
        x0, x1 = max(self.left, round(self.x(box.start))), min(WIDTH - MARGIN, round(self.x(box.end)))
        if x1 <= self.left or x0 >= WIDTH - MARGIN:
            return
        fill, y = colour(box.stage, self.steps), self.rows[box.track]
        inset = 16 if box.stage in WAITING else 0
        # Encoding goes on in a thread of its own, while the worker computes.
        top, bottom = (y + TRACK - 6, y + TRACK) if box.stage == "encode" else (y + inset, y + TRACK - inset)
        x1 = max(x1 - 2, x0)  # inclusive: a hairline between neighbours, and the shortest still shows
        self.draw.rectangle((x0, top, x1, bottom), fill=fill)
        label = str(box.chunk)
        if box.stage in WAITING or box.stage == "encode" or box.chunk < 0:
            return
        for font in (self.font, self.small):
            if font.getlength(label) + 4 <= x1 - x0:
                light = sum(fill) < 3 * 170
                where = ((x0 + x1) / 2, y + TRACK / 2)
                self.draw.text(where, label, fill=PAPER if light else INK, font=font, anchor="mm")
                return

    def legend(self, title: str) -> None:
        """The title, and what the colours mean, for stages that are there."""
        self.draw.text((MARGIN, MARGIN), title, fill=INK, font=self.large)
        there = {b.stage for b in self.boxes}
        names = [f"step{i}" for i in range(self.steps) if f"step{i}" in there] + [n for n in LAST if n in there]
        x, y = MARGIN, MARGIN + TITLE - 4
        for name in names:
            self.draw.rectangle((x, y, x + 14, y + 14), fill=colour(name, self.steps))
            self.draw.text((x + 20, y + 7), name, fill=INK, font=self.small, anchor="lm")
            x += 20 + round(self.small.getlength(name)) + 22
        self.draw.text((x, y + 7), "number: chunk", fill=FAINT, font=self.small, anchor="lm")


def draw(trace_json: Path, png: Path, first_s: float | None = None) -> None:
    """Draw a trace.

    Args:
        trace_json: as `runtime.trace` writes it, whole or cut short.
        png: the picture; its folder is made.
        first_s: seconds shown, from the first work on; None: until FIRST_CHUNKS chunks have left.

    Raises:
        OSError: the trace cannot be read.
        UserError: the picture cannot be written.
    """
    names, boxes = read(Path(trace_json))
    begin, end = shown(boxes, first_s)
    picture = _Picture(names, boxes, (begin, max(end, begin + 1e-3)))
    picture.axis()
    # Waiting first: a send that goes on while the next step computes must not hide it.
    for box in sorted(boxes, key=lambda b: (b.stage not in WAITING, b.stage == "encode")):
        picture.box(box)
    chunks = len({b.chunk for b in boxes if b.chunk >= 0 and b.start < end})
    picture.legend(f"The first {end - begin:.2f} s, {chunks} chunk{'s' * (chunks != 1)}")
    with disk.writing(f"sink.timeline={png}"), disk.replacing(disk.prepare(png)) as aside:
        picture.image.save(aside, format="PNG")
