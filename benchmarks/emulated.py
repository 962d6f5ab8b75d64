"""Streams on emulated devices, for the benches of orchestration: what is common to them.

The model is any (`nano`); latents have the size of a 14B model's at 704x384 in bfloat16, 0.405 MB.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BASE = (
    "model=nano", "model.dtype=bfloat16", "model.network.audio=null", "model.network.actions=[]",
    "model.reference=false", "model.positions=slot", "stream.height=384", "stream.width=704",
    "device=emulated", "launcher.timeout_s=300",
)  # fmt: skip
"""Nothing but latents travels, and nothing is heard or pressed."""
LATENT_BYTES = 405_504


def rate(report: dict[str, Any]) -> float:
    """Chunks per second in steady running, of all streams together."""
    return sum(s["fps"] * s["chunks"] / s["frames"] for s in report.get("streams", [report]))


def first_chunk_s(folder: Path) -> float:
    """From the moment that chunk 0 of a run with one stream entered its first cell, until its latents were final."""
    events = json.loads((folder / "trace.json").read_text())
    steps = [e for e in events if e["name"].startswith("step") and e["args"]["chunk"] == 0]
    return (max(e["ts"] + e["dur"] for e in steps) - min(e["ts"] for e in steps)) / 1e6


def busy() -> list[float]:
    """Load averages before a measurement: other work on the machine's cores shows here."""
    return [round(load, 2) for load in os.getloadavg()]
