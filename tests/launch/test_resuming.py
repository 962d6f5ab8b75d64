"""Runs that are stopped or killed as processes, and gone on with by others under another launcher."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from benchmarks.kill import is_worker
from tests.helpers import thorough
from tests.launch.started import report_of
from tests.launch.started import start as start_workers
from tests.launch.test_stream import decoded, finish, start, wait_for
from tests.patience import PATIENT_S

SINKS = ("sink.latents=${output_dir}/latents.safetensors",)


def whole_state(folder: Path) -> int | None:
    """The chunk of the newest whole state."""
    found = [int(path.parent.name.split(".")[1]) for path in folder.glob("state/chunk.*/state.json")]
    return max((n for n in found if (folder / f"state/chunk.{n:06d}").exists()), default=None)


def check_joined(folder: Path, chunks: int) -> None:
    """One playable video and one file of latents, of all chunks."""
    frames, seconds = decoded(folder / "video.mp4")
    assert frames == 12 * chunks and abs(seconds - frames / 16) < 0.1
    assert not list(folder.glob("video.from-*"))
    assert sorted(load_file(folder / "latents.safetensors")) == [f"chunk.{i:06d}" for i in range(chunks)]


def test_a_killed_run_goes_on_from_its_last_state_and_loses_nothing(job, tmp_path):
    folder = tmp_path / "run"
    process = start(f"output_dir={folder}", *SINKS, "stream.save_every_chunks=4", "model.recalibrate_chunk=4")
    wait_for(folder / "state" / "chunk.000008" / "state.json", 1, process)
    process.kill()
    process.wait()
    at = whole_state(folder)
    chunks = at + 7
    # A second run is killed, too, before it has saved anything: its part of the video is made again.
    process = start(f"output_dir={folder}", *SINKS, "model.recalibrate_chunk=4", f"resume={folder}")
    wait_for(folder / f"video.from-{12 * at:08d}.mp4", 5000, process)
    process.kill()
    process.wait()
    base = (f"stream.chunks={chunks}", "model.recalibrate_chunk=4")
    job.folder = folder
    report = job("model=nano", *base, *SINKS, "plan=timestep", "plan.workers=2", f"resume={folder}")
    assert report["finished"] and report["state"]["resumed_at"] == at
    said = job.said.splitlines()
    assert f"resume={folder}: stream 0 goes on with chunk {at}" in said
    assert any(f"nano  {chunks} chunks in all  {chunks * 0.75:.1f} s of video" in line for line in said)
    check_joined(folder, chunks)
    job.folder = tmp_path / "whole"
    assert report["latents_sha256"] == job("model=nano", "sink.video=null", *base)["latents_sha256"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, thorough(signal.SIGTERM)])
def test_a_signal_saves_the_state_where_it_stops(job, tmp_path, number):
    folder = tmp_path / "run"
    process = start(f"output_dir={folder}", *SINKS, "stream.save_on_stop=true")
    wait_for(folder / "video.mp4", 5000, process)
    process.send_signal(number)
    if number == signal.SIGUSR1:
        process.send_signal(number)  # as often as a batch system likes
    _, err = finish(process)
    assert process.returncode == 0, err
    stopped = report_of(folder)
    at = stopped["chunks"]
    assert stopped["finished"] is False and stopped["state"]["saved"] == at == whole_state(folder)
    job.folder = folder
    report = job("model=nano", *SINKS, f"stream.chunks={at + 3}", f"resume={folder}")
    assert report["finished"] and report["chunks"] == at + 3
    check_joined(folder, at + 3)
    job.folder = tmp_path / "whole"
    whole = job("model=nano", "sink.video=null", f"stream.chunks={at + 3}")
    assert report["latents_sha256"] == whole["latents_sha256"]


@pytest.mark.parametrize("launcher", ["local", thorough("ray")])
def test_from_torchrun_to_another(job, tmp_path, launcher):
    """One rank of a torchrun is told to stop; others go on with blocks of layers where it had steps."""
    folder, base = tmp_path / "run", ("model=nano", "model.recalibrate_chunk=4", *SINKS)
    process = start_workers("torchrun", 3, *base, "plan=timestep", "stream.save_on_stop=true", f"output_dir={folder}")
    deadline = time.monotonic() + PATIENT_S
    while not (folder / "video.mp4").exists() or (folder / "video.mp4").stat().st_size < 5000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p, "torchrun")]
    os.kill(workers[1].pid, signal.SIGUSR1)
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    stopped = report_of(folder)
    chunks = stopped["chunks"] + 3
    assert stopped["finished"] is False and stopped["state"]["saved"] == stopped["chunks"]
    job.folder = folder
    more = (f"launcher={launcher}", "plan=layers", "plan.workers=2", f"stream.chunks={chunks}", f"resume={folder}")
    report = job(*base, *more)
    assert report["finished"] and report["launcher"] == launcher
    check_joined(folder, chunks)
    job.folder = tmp_path / "whole"
    whole = job("model=nano", "model.recalibrate_chunk=4", "sink.video=null", f"stream.chunks={chunks}")
    assert report["latents_sha256"] == whole["latents_sha256"]


@pytest.mark.long
def test_a_state_of_another_stream_is_refused_by_every_launcher(tmp_path, job):
    folder = tmp_path / "saved"
    job.folder = folder
    job("model=nano", "sink.video=null", "stream.chunks=2", "stream.save_every_chunks=2")
    process = start_workers(
        "torchrun", 2, "model=nano", "plan=timestep", "stream.seed=3", f"resume={folder}", f"output_dir={tmp_path}/x"
    )
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode != 0
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        f"error: resume={folder}/state/chunk.000002: was saved with stream.seed=0, this run has 3; "
        "give what it was saved with"
    ]
    assert not (tmp_path / "x").exists()
    assert json.loads((folder / "state" / "chunk.000002" / "state.json").read_text())["chunk"] == 2
