"""The main job as processes, and their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STARTED: list[subprocess.Popen] = []


def command(launcher: str, workers: int, *overrides: str) -> list[str]:
    """The command line of a run with `workers` processes."""
    module = ["-m", "launch.stream", f"launcher={launcher}", *overrides]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", *module]
    return [sys.executable, *module, f"plan.workers={workers}"]


def start(launcher: str, workers: int, *overrides: str, **options) -> subprocess.Popen:
    """The main job, in a session of its own."""
    process = subprocess.Popen(
        command(launcher, workers, *overrides),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip
    STARTED.append(process)
    return process


def alive(process: psutil.Process) -> bool:
    """Whether a process is there, and has not just ended."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def report_of(folder: Path) -> dict:
    """What a run has reported."""
    return json.loads((folder / "report.json").read_text())


def end_all() -> None:
    """End what a test has left running: an endless stream would take the machine's time from all that follow."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for left in (*psutil.Process(process.pid).children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):  # it has ended by itself
                    left.kill()
            process.communicate()
