"""What cuts take of throughput: runs with `launcher.recover=exact` and without, by turns."""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.emulated import BASE, rate
from benchmarks.launched import start
from benchmarks.record import bar

LEAST = 0.98
BANK_BYTES = 1_000_000_000
STEP_S = 0.25
TAKEN_BYTES = 256 << 20
WAYS = ("off", "exact")
POCKET = ("sink.video=null", "device=cpu")
CASES = {
    "pocket_avatar": (
        2, ("model=pocket_avatar", "source.image=assets/portrait.png", "source.audio=assets/speech.wav", *POCKET), 8.0,
    ),
    "pocket_world": (2, ("model=pocket_world", "source.actions=assets/actions.jsonl", *POCKET), 8.0),
    "emulated, banks of 1 GB": (
        2,
        (
            *BASE, f"device.emulated.bank_bytes={BANK_BYTES}", f"device.emulated.step_s={STEP_S}",
            "model.steps=2",
        ),
        1 / STEP_S,
    ),
}  # fmt: skip
"""Workers, settings, and about how many chunks a second are made. Of two levels and two workers each worker holds one
bank."""


def bandwidth() -> float:
    """Bytes a second at which this machine copies to memory that is a file, as cuts do."""
    source, best = torch.ones(TAKEN_BYTES, dtype=torch.uint8), 0.0
    path = Path("/dev/shm") / f"recover-bandwidth-{time.time_ns()}"
    with path.open("w+b") as file:
        try:
            file.truncate(TAKEN_BYTES)
            with mmap.mmap(file.fileno(), TAKEN_BYTES) as held:
                target = torch.frombuffer(held, dtype=torch.uint8)
                for _ in range(4):
                    began = time.perf_counter()
                    target.copy_(source)
                    best = max(best, TAKEN_BYTES / (time.perf_counter() - began))
                del target
        finally:
            path.unlink()
    return best


def once(name: str, recover: str, chunks: int, folder: Path) -> float:
    """Chunks a second of one run."""
    workers, settings, _ = CASES[name]
    process = start(
        "local", workers, folder, *settings, "plan=timestep", "launcher.threads=false", f"launcher.recover={recover}",
        f"stream.chunks={chunks}", "sink.trace=none",
    )  # fmt: skip
    _, err = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"{name} with launcher.recover={recover} failed:\n{err[-3000:]}")
    return rate(json.loads((folder / "report.json").read_text()))


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Every case: off, exact, exact, off, ... so that what drifts hits both."""
    measured: dict[str, Any] = {"bandwidth, GB a second": round(bandwidth() / 1e9, 2)}
    for name, (_, _, a_second) in CASES.items():
        chunks, found = max(20, int(seconds * a_second)), {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                made = once(name, way, chunks, folder / f"{name.split(',')[0]}-{number}-{way}")
                found[way].append(round(made, 3))
                print(f"{name}: {way} {made:.3f} chunks a second", file=sys.stderr, flush=True)
        share = statistics.median(found["exact"]) / statistics.median(found["off"])
        measured[f"{name}: exact of off"] = bar(round(share, 4), f">= {LEAST}", share >= LEAST)
        measured[f"{name}: chunks a second"] = found
    return measured


def configuration(seconds: float) -> dict[str, Any]:
    """What was run."""
    return {"cases": {name: case[:2] for name, case in CASES.items()}, "seconds": seconds, "plan": "timestep"}
