"""Every launcher, every signal, every phase of a run's life, as real processes: `make test-all`."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.kill import is_worker
from launch.signals import SIGNALS
from tests.launch.started import start
from tests.launch.test_stream import decoded
from tests.patience import PATIENT_S

pytestmark = pytest.mark.long

PLAN = ("plan=timestep",)
LAUNCHERS = {
    "sequential": ("local", 1, ()),
    "threads": ("local", 2, PLAN),
    "processes": ("local", 2, (*PLAN, "launcher.threads=false")),
    "ray": ("ray", 2, PLAN),
    "torchrun": ("torchrun", 2, PLAN),
}


def ranks(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if is_worker(p, "torchrun")]


def handles(process: psutil.Process) -> bool:
    """Whether a process hears SIGUSR1 already."""
    caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def wait_for(process: subprocess.Popen, test) -> None:
    end = time.monotonic() + PATIENT_S
    while not test():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def hearers(process: subprocess.Popen, launcher: str) -> list[psutil.Process]:
    """Whom a signal is sent to: the run, or one rank of a torchrun."""
    return ranks(process)[-1:] if launcher == "torchrun" else [psutil.Process(process.pid)]


def starting(process: subprocess.Popen, launcher: str, folder: Path, draw: random.Random) -> None:
    """Anywhere between the first moment and the first chunk."""
    wait_for(process, lambda: (found := hearers(process, launcher)) and all(map(handles, found)))
    time.sleep(draw.choice([0, 0.3, 1, 2, 4]))


def streaming(process: subprocess.Popen, launcher: str, folder: Path, draw: random.Random) -> None:
    video = folder / "video.mp4"
    wait_for(process, lambda: video.exists() and video.stat().st_size > 5000)


def waiting(process: subprocess.Popen, launcher: str, folder: Path, draw: random.Random) -> None:
    """For whoever writes orders into a pipe."""
    wait_for(process, (folder / "config.yaml").exists)


PHASES = {"starting": starting, "streaming": streaming, "waiting": waiting}


def begin(launcher: str, phase: str, folder: Path) -> subprocess.Popen:
    orders = ()
    if phase == "waiting":
        pipe = folder.parent / "orders"
        os.mkfifo(pipe)
        orders = (f"control={pipe}",)
    kind, workers, overrides = LAUNCHERS[launcher]
    return start(kind, workers, "model=nano", f"output_dir={folder}", *overrides, *orders)


def over(process: subprocess.Popen, family: list[psutil.Process]) -> str:
    """What a run has printed when it and all it had started are gone."""
    out, err = process.communicate(timeout=PATIENT_S)
    _, alive = psutil.wait_procs(family, timeout=PATIENT_S)
    assert not alive, [p.cmdline() for p in alive]
    assert "Traceback" not in err, err
    return out + err


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_cleanly(tmp_path, launcher, phase, number):
    folder, draw = tmp_path / "run", random.Random(f"{launcher} {phase} {number}")
    process = begin(launcher, phase, folder)
    PHASES[phase](process, launcher, folder, draw)
    family = psutil.Process(process.pid).children(recursive=True)
    if launcher == "ray" and number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches every process of the terminal
    else:
        for hearer in hearers(process, launcher):
            hearer.send_signal(number)
    said = over(process, family)
    assert process.returncode == 0, said
    if not folder.exists():
        assert phase == "starting" and "stopped before anything was streamed" in said
        return
    report = json.loads((folder / "report.json").read_text())
    assert f"report: {folder / 'report.json'}" in said
    if phase == "waiting":
        assert report["streams"] == []
    elif report["frames"]:
        assert decoded(folder / "video.mp4")[0] == report["frames"]
        assert report["finished"] is False and report["latents_sha256"] in said


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "torchrun"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_second_signal_ends_a_run_at_once(tmp_path, launcher, phase):
    folder = tmp_path / "run"
    process = begin(launcher, phase, folder)
    PHASES[phase](process, launcher, folder, random.Random(launcher))
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    over(process, family)
    assert process.returncode in (0, 128 + signal.SIGINT)
    if phase == "streaming":
        assert decoded(folder / "video.mp4")[0] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchruns_own_signals_end_a_run_cleanly(tmp_path, number):
    """Ctrl-C reaches torchrun and its ranks, and torchrun passes it on: one signal. What it prints is its own."""
    folder = tmp_path / "run"
    process = begin("torchrun", "streaming", folder)
    streaming(process, "torchrun", folder, random.Random(0))
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENT_S)
    assert not psutil.wait_procs(family, timeout=PATIENT_S)[1]
    report = json.loads((folder / "report.json").read_text())
    assert decoded(folder / "video.mp4")[0] == report["frames"] > 0
    assert report["latents_sha256"] in out
