"""What cuts take of throughput: turns with them against turns without, within one run (`benchmarks.turns`).

Two runs of the same differ by up to a third, from minute to minute and from one start to the next, far more than what
is measured. Turns of one run have the machine, the memory and the course of things in common, and there are many of
them.
"""

from __future__ import annotations

import math
import mmap
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from benchmarks import faults
from benchmarks.emulated import BASE
from benchmarks.launched import ROOT, command
from benchmarks.record import bar
from benchmarks.turns import MOMENTS, TURN, cut

LEAST = 0.98
BANK_BYTES = 1_000_000_000
STEP_S = 0.25
TAKEN_BYTES = 256 << 20
POCKET = ("sink.video=null", "device=cpu")
COLD = 4
"""Turns that are not counted: a run begins cold."""
END_S = 60.0
"""Longest wait for the end of a run that was told to end."""


class Run(NamedTuple):
    """Settings, and chunks of a turn: at least as many as are made from one cut to the next."""

    settings: tuple[str, ...]
    turn: int


RUNS = {
    "pocket_avatar": Run(
        ("model=pocket_avatar", "source.image=assets/portrait.png", "source.audio=assets/speech.wav", *POCKET), 60
    ),
    "pocket_world": Run(("model=pocket_world", "source.actions=assets/actions.jsonl", *POCKET), 60),
    "emulated, banks of 1 GB": Run(
        (
            *BASE, f"device.emulated.bank_bytes={BANK_BYTES}", f"device.emulated.step_s={STEP_S}", "model.steps=2",
        ),
        12,
    ),
}  # fmt: skip
"""Of two levels and two workers each worker holds one bank."""
PLAN = ("plan=timestep", "launcher.threads=false", "launcher.recover=exact", "stream.chunks=1000000", "sink.trace=none")


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


def moments(name: str, seconds: float, folder: Path) -> dict[int, float]:
    """When the chunks of a run were sampled, by chunk."""
    folder.mkdir(parents=True)
    noted, run = folder / "moments", RUNS[name]
    given = faults.in_children(folder / "hook", "benchmarks.turns")
    process = subprocess.Popen(
        command("local", 2, f"output_dir={folder / 'run'}", *run.settings, *PLAN), cwd=ROOT, start_new_session=True,
        env=given | {"OMP_NUM_THREADS": "1", TURN: str(run.turn), MOMENTS: str(noted)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=END_S)
    finally:
        process.kill()
    if process.returncode not in (0, 128 + signal.SIGINT) or not noted.exists():
        raise SystemExit(f"{name} ended with {process.returncode}:\n{err[-3000:]}")
    return {int(chunk): float(at) for chunk, at in (line.split() for line in noted.read_text().splitlines())}


def turns(at: dict[int, float], turn: int) -> list[float]:
    """Seconds of each whole turn, from the first one that is not cold, which is without cuts."""
    begins = [at[chunk] for chunk in range(COLD * turn, max(at) + 1, turn)]
    assert not cut(COLD * turn, turn)
    return [after - before for before, after in pairwise(begins)]


def compared(seconds: list[float]) -> tuple[float, float]:
    """Throughput with cuts over that without, and its standard error.

    A turn with cuts is compared with the geometric mean of the turns without before and after it, which takes out what
    drifts evenly; the result is the geometric mean of all these ratios.
    """
    logs = [math.log(second) for second in seconds]
    ratios = [(logs[i - 1] + logs[i + 1]) / 2 - logs[i] for i in range(1, len(logs) - 1, 2)]
    share = math.exp(mean(ratios))
    return share, share * stdev(ratios) / math.sqrt(len(ratios))


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Every run."""
    measured: dict[str, Any] = {"bandwidth, GB a second": round(bandwidth() / 1e9, 2)}
    for name, run in RUNS.items():
        found = turns(moments(name, seconds, folder / name.split(",")[0]), run.turn)
        if len(found) < 2 * COLD:
            raise SystemExit(f"{name}: {len(found)} turns say too little; give more --seconds")
        share, error = compared(found)
        print(f"{name}: {share:.4f} +- {error:.4f}, {len(found)} turns", file=sys.stderr, flush=True)
        measured |= {
            f"{name}: with cuts over without": bar(round(share, 4), f">= {LEAST}", share >= LEAST),
            f"{name}: standard error": round(error, 4),
            f"{name}: turns": len(found),
            f"{name}: chunks a second": round(run.turn * len(found) / sum(found), 2),
        }
    return measured


def configuration(seconds: float) -> dict[str, Any]:
    """What was run."""
    return {"runs": {name: run._asdict() for name, run in RUNS.items()}, "plan": PLAN, "seconds": seconds}
