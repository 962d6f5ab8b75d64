"""What cuts take of throughput: a run with `launcher.recover=exact` against one without.

Rates of the same run differ by up to a third from minute to minute where a machine is shared, more than what is
measured. So where computing is what takes time both run at once, each on half of the cores, and change halves every
`SWAP_S`: what drifts hits both. All of a run's processes are on its cores, the keeper of cuts, too. On half a
machine a chunk takes about twice as long, so a cut is due after twice the time (`RECOVER_S`): as many chunks as on the
whole machine. Emulated devices sleep while they "compute", and would copy their banks at half the machine's bandwidth:
they run by turns.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil
import torch

from benchmarks.emulated import BASE, rate
from benchmarks.launched import start
from benchmarks.record import bar

LEAST = 0.98
BANK_BYTES = 1_000_000_000
STEP_S = 0.25
TAKEN_BYTES = 256 << 20
WAYS = ("off", "exact")
RECOVER_S = 2.0
SWAP_S = 1.0
END_S = 60.0
"""Longest wait for the end of a run that was told to end."""
POCKET = ("sink.video=null", "device=cpu")
CASES = {
    "pocket_avatar": (
        True, ("model=pocket_avatar", "source.image=assets/portrait.png", "source.audio=assets/speech.wav", *POCKET),
    ),
    "pocket_world": (True, ("model=pocket_world", "source.actions=assets/actions.jsonl", *POCKET)),
    "emulated, banks of 1 GB": (
        False,
        (
            *BASE, f"device.emulated.bank_bytes={BANK_BYTES}", f"device.emulated.step_s={STEP_S}",
            "model.steps=2",
        ),
    ),
}  # fmt: skip
"""Whether both ways run at once, and settings. Of two levels and two workers each worker holds one bank."""
WORKERS = 2


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


def halves() -> list[set[int]]:
    """The cores of this machine that may be used, in two sets of as many."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("one core: two runs cannot have one each; use a machine of at least 2")
    half = len(cores) // 2
    return [set(cores[:half]), set(cores[half : 2 * half])]


def move(pid: int, cores: set[int]) -> None:
    """Have a process and all that it started run on these cores."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, cores)


def rates(name: str, seconds: float, folder: Path, cores: dict[str, set[int]], recover_s: float) -> dict[str, float]:
    """Chunks a second of runs that begin and end together, by way, each on cores of its own."""
    runs = {
        way: start(
            "local", WORKERS, folder / way, *CASES[name][1], "plan=timestep", "launcher.threads=false",
            f"launcher.recover={way}", f"launcher.recover_s={recover_s}", "stream.chunks=null", "sink.trace=none",
            preexec_fn=lambda own=own: os.sched_setaffinity(0, own),
        ) for way, own in cores.items()
    }  # fmt: skip
    try:
        until, own = time.monotonic() + seconds, list(cores.values())
        while time.monotonic() < until:
            time.sleep(SWAP_S)
            own = own[1:] + own[:1]
            for process, its in zip(runs.values(), own, strict=True):
                move(process.pid, its)
        for process in runs.values():
            process.send_signal(signal.SIGINT)
        return {way: ended(name, way, process, folder / way) for way, process in runs.items()}
    finally:
        for process in runs.values():
            process.kill()


def pair(name: str, seconds: float, folder: Path, swapped: bool) -> dict[str, float]:
    """Chunks a second of both ways."""
    own, ways = halves(), WAYS[::-1] if swapped else WAYS
    if CASES[name][0]:
        return rates(name, seconds, folder, dict(zip(ways, own, strict=True)), RECOVER_S)
    found: dict[str, float] = {}
    for way in ways:
        found |= rates(name, seconds, folder, {way: own[0] | own[1]}, RECOVER_S / 2)
    return found


def ended(name: str, way: str, process: subprocess.Popen, folder: Path) -> float:
    """Chunks a second of a run that was told to end."""
    _, err = process.communicate(timeout=END_S)
    if process.returncode not in (0, 128 + signal.SIGINT):
        raise SystemExit(f"{name} with launcher.recover={way} failed:\n{err[-3000:]}")
    if not (report := folder / "report.json").exists():
        raise SystemExit(f"{name} with launcher.recover={way} made no picture yet; give more --seconds")
    return rate(json.loads(report.read_text()))


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Every case, in an even number of rounds: each way has each half of the cores as often.

    What is held against the bar is the geometric mean of the ratios, told with its standard error.
    """
    measured: dict[str, Any] = {"bandwidth, GB a second": round(bandwidth() / 1e9, 2)}
    for name in CASES:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + rounds % 2):
            made = pair(name, seconds, folder / f"{name.split(',')[0]}-{number}", swapped=bool(number % 2))
            for way in WAYS:
                found[way].append(round(made[way], 3))
            print(f"{name}: {made} chunks a second", file=sys.stderr, flush=True)
        logs = [math.log(exact / off) for off, exact in zip(*(found[way] for way in WAYS), strict=True)]
        share = math.exp(mean(logs))
        measured[f"{name}: exact of off"] = bar(round(share, 4), f">= {LEAST}", share >= LEAST)
        measured[f"{name}: standard error"] = round(share * stdev(logs) / math.sqrt(len(logs)), 4)
        measured[f"{name}: chunks a second"] = found
    return measured


def configuration(seconds: float) -> dict[str, Any]:
    """What was run."""
    return {
        "cases": CASES, "seconds": seconds, "plan": "timestep", "launcher.recover_s": RECOVER_S,
        "cores of a run": [sorted(own) for own in halves()],
    }  # fmt: skip
