"""Frames per second of the pocket models, whole streams with their pictures."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Bench, Row
from benchmarks.gpu.runs import LOOP, PLANS, Settings, config, ran

CHUNKS, SMALL_CHUNKS = 40, 3


def rate(name: str, settings: Settings, bench: Bench) -> dict[str, Any]:
    """The rate in steady state."""
    with tempfile.TemporaryDirectory() as folder:
        length = SMALL_CHUNKS if bench.small else CHUNKS
        given = config(bench, name, settings, Path(folder), graphs="auto", chunks=length)
        _, report = ran(given)
    return {"value": f"{report['fps']:.1f} frames/s, {given.model.fps} are wanted", "fps": report["fps"]}


ROWS = [
    Row(f"rate {name}, {label}", 6, partial(rate, name, settings))
    for name in ("pocket_avatar", "pocket_world")
    for label, settings in (("loop", LOOP), ("timestep", PLANS["timestep"]))
]
