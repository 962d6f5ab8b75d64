"""Workers as real processes: the oracle's bits under torchrun and Ray, and a clean end when one of them dies."""

import json
import random
import signal
import time

import psutil
import pytest

from benchmarks.kill import is_worker
from tests.launch.started import report_of, start
from tests.launch.test_stream import decoded
from tests.patience import PATIENT_S

BASE = (
    "model=nano", "stream.chunks=10", "stream.prompt=hello", "model.recalibrate_chunk=4",
    "stream.events=[{chunk: 7, prompt: other}]",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "workers", "plan"),
    [
        ("torchrun", 5, ("plan=timestep",)),
        ("torchrun", 4, ("plan=grid", "model.context=clean")),
        ("torchrun", 5, ("plan=timestep", "plan.steps=[3,1]", "plan.sequence_parallel=2")),
        ("ray", 3, ("plan=timestep",)),
        ("ray", 2, ("plan=layers",)),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_processes_give_the_oracles_bits(job, tmp_path, launcher, workers, plan):
    # Sharing passes rounds in its own way, whatever the plan.
    kept = [o for o in plan if o.startswith(("model", "plan.sequence"))]
    expected = job(*BASE, "sink.video=null", *kept)
    folder = tmp_path / "run"
    process = start(launcher, workers, *BASE, *plan, f"output_dir={folder}")
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    found = report_of(folder)
    assert found["latents_sha256"] == expected["latents_sha256"]
    assert (found["workers"], found["launcher"]) == (workers, launcher)
    assert decoded(folder / "video.mp4")[0] == found["frames"] == 120
    trace = json.loads((folder / "trace.json").read_text())
    assert {e["tid"] for e in trace} == set(range(workers))


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_a_killed_worker_ends_the_run(tmp_path, launcher):
    """kill -9 of any worker, at any chunk: one line that names it, a playable video, no process left behind."""
    folder, workers = tmp_path / "run", 2
    overrides = ("model=nano", "plan=timestep", f"output_dir={folder}")
    process = start(launcher, workers, *overrides)
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + PATIENT_S
    while not (folder / "video.mp4").exists() or (folder / "video.mp4").stat().st_size < 30_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(random.Random(launcher).random())
    members = family.children(recursive=True)
    victims = [p for p in members if is_worker(p, launcher)]
    assert len(victims) == workers
    victims[1].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode not in (0, None)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "is lost" in lines[0]
    assert decoded(folder / "video.mp4")[0] > 0
    _, alive = psutil.wait_procs(members, timeout=PATIENT_S)
    assert not alive, [p.cmdline() for p in alive]


def test_outside_torchrun_the_launcher_says_how_to_start(job):
    assert "start it with torchrun --nproc-per-node=N" in job.fails("model=nano", "launcher=torchrun")
