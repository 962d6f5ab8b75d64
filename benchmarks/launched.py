"""Runs of the main job as a user starts them, for the benchmarks that need real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def command(launcher: str, workers: int, *overrides: str) -> list[str]:
    """The command line of a run with `workers` workers; `sequential` is the oracle in one process."""
    module = ["-m", "launch.stream", *overrides]
    if launcher == "sequential":
        return [sys.executable, *module, "plan=sequential", "launcher=local"]
    if launcher == "torchrun":
        return [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", *module, "launcher=torchrun",
        ]  # fmt: skip
    return [sys.executable, *module, f"launcher={launcher}", f"plan.workers={workers}"]


def start(launcher: str, workers: int, folder: Path, *overrides: str, **options: Any) -> subprocess.Popen:
    """A run in a session of its own, its output captured."""
    return subprocess.Popen(
        command(launcher, workers, f"output_dir={folder}", *overrides),
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run(launcher: str, workers: int, folder: Path, *overrides: str) -> dict[str, Any]:
    """The report of a run that must succeed."""
    process = start(launcher, workers, folder, *overrides)
    _, err = process.communicate(timeout=540)
    if process.returncode:
        raise SystemExit(f"{' '.join(overrides)} under {launcher} failed:\n{err[-3000:]}")
    return json.loads((folder / "report.json").read_text())
