"""Whoever holds a run is killed: nothing of it is left, not even a worker that was stopped, and what was saved is
there."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from runtime import cuts
from tests.helpers import thorough
from tests.launch.losing import EXACT
from tests.launch.started import alive, start
from tests.patience import PATIENT_S


def until(test) -> None:
    end = time.monotonic() + PATIENT_S
    while not test():
        assert time.monotonic() < end
        time.sleep(0.05)


def whole(run: Path) -> list[Path]:
    """States that are whole."""
    return [path for path in run.glob("**/chunk.*") if path.suffix != ".part"]


@pytest.mark.parametrize("launcher", ["local", thorough("ray")])
def test_workers_end_and_states_stay(tmp_path, job, launcher):
    run, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    process = start(
        launcher, 2, "model=nano", "plan=timestep", "device=cpu", *EXACT, f"output_dir={run}",
        "stream.chunks=100000", "stream.save_every_chunks=5", f"launcher.cuts={memory}",
    )  # fmt: skip
    until(lambda: whole(run))
    family = psutil.Process(process.pid).children(recursive=True)
    # Agents of Ray's own stay for a while.
    family = [one for one in family if "Agent" not in " ".join(one.cmdline())]
    assert family
    if launcher == "local" and sys.platform.startswith("linux"):
        # A stopped worker cannot see that the pipe from whoever started it has ended.
        next(one for one in family if "launch.worker" in one.cmdline()).send_signal(signal.SIGSTOP)
    process.kill()
    until(lambda: not any(map(alive, family)))
    until(lambda: cuts.sweep(memory) or not list(memory.iterdir()))  # as the next run does
    state = max(whole(run))
    report = job("model=nano", f"resume={state}", f"stream.chunks={int(state.name.split('.')[1]) + 3}")
    assert report["latents_sha256"] == job("model=nano", f"stream.chunks={report['chunks']}")["latents_sha256"]
