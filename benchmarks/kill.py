"""kill -9 of any worker, at a random chunk, ten times on torchrun and on Ray. `python -m benchmarks.kill`.

Each run must end within the configured timeout with one line that names the worker, a nonzero exit code, a playable
mp4 and no process left behind.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import av
import psutil

from benchmarks.launched import start
from benchmarks.record import bar, record

TIMES, WORKERS, TIMEOUT_S = 10, 3, 20


def is_worker(process: psutil.Process, launcher: str) -> bool:
    """Whether a process of the run's family is a worker of the plan."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    if launcher == "ray":
        return line.startswith("ray::WorkerActor")
    return "launch.stream" in line and "torch.distributed.run" not in line


def playable(video: Path) -> int:
    """Frames a player gets."""
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def once(launcher: str, folder: Path, draw: random.Random) -> dict:
    """One run with one victim."""
    options = ("model=nano", "plan=timestep", "source.image=assets/portrait.png", f"launcher.timeout_s={TIMEOUT_S}")
    process = start(launcher, WORKERS, folder, *options)
    family, video = psutil.Process(process.pid), folder / "video.mp4"
    while not (video.exists() and video.stat().st_size > 30_000):
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself: {process.communicate()[1][-2000:]}")
        time.sleep(0.05)
    time.sleep(2 * draw.random())
    members = family.children(recursive=True)
    workers = [p for p in members if is_worker(p, launcher)]
    victim = draw.choice(workers)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=120)
    took = time.monotonic() - killed
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    _, alive = psutil.wait_procs(members, timeout=20)
    return {
        "seconds": round(took, 1),
        "line": lines[0] if len(lines) == 1 else lines,
        "clean": process.returncode not in (0, None) and len(lines) == 1 and "is lost" in lines[0] and not alive,
        "frames": playable(video),
    }


def main() -> bool:
    measured, draw = {}, random.Random(7)
    with tempfile.TemporaryDirectory() as temporary:
        for launcher in ("torchrun", "ray"):
            runs = [once(launcher, Path(temporary) / f"{launcher}{i}", draw) for i in range(TIMES)]
            good = [r for r in runs if r["clean"] and r["frames"] and r["seconds"] <= TIMEOUT_S]
            slowest = max(r["seconds"] for r in runs)
            measured[f"{launcher}: clean ends"] = bar(f"{len(good)} of {TIMES}", "all", len(good) == TIMES)
            measured[f"{launcher}: slowest end"] = bar(f"{slowest} s", f"<= {TIMEOUT_S} s", slowest <= TIMEOUT_S)
            measured[f"{launcher}: runs"] = runs
    record("kill", "python -m benchmarks.kill", {"times": TIMES, "workers": WORKERS, "plan": "timestep"}, measured)
    return all(m["passed"] for m in measured.values() if isinstance(m, dict))


if __name__ == "__main__":
    sys.exit(not main())
