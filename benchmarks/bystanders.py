"""Whether one stream's slow opening and slow files hold up another: `python -m benchmarks.bystanders [threads ...]`.

Stages are emulated. Stream `a` is live: its sound comes as fast as it is heard, and so do its chunks. Then streams `b`
come one after the other whose encoder takes two seconds at opening, and whose files take three times a chunk's length
for every chunk. The intervals between the chunks of `a` before and meanwhile are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import faults
from benchmarks.islands import LAUNCHERS, WAIT_S
from benchmarks.launched import ROOT
from benchmarks.record import bar, record
from benchmarks.slowness import ARRIVALS, FILES_S, OPENING_S, arm
from conf.schema import Config
from launch.cli import compose
from launch.running import start

RATE = 16000
ALONE, BESIDE = 24, 48
"""Chunks of `a` before the others come, and in all."""
OVERRIDES = [
    "model=nano", "plan=timestep", "plan.steps=[2,2]", "plan.workers=3", "device=emulated",
    "device.emulated.step_s=0.05", "device.emulated.decode_s=0.05", "source.audio=-", "launcher.timeout_s=60",
]  # fmt: skip


def speak(pipe: int, over: threading.Event) -> None:
    """Silence at the rate at which it is heard."""
    begun, said = time.monotonic(), 0
    while not over.wait(0.05):
        due = int((time.monotonic() - begun) * RATE)
        os.write(pipe, bytes(2 * (due - said)))
        said = due
    os.close(pipe)


def scenario(launcher: str, folder: Path) -> None:
    """Run it in this process; under torchrun in every rank."""
    arm()
    name = {"threads": "local"}.get(launcher, launcher)
    config = compose("stream", Config, [*OVERRIDES, f"output_dir={folder}", f"launcher={name}"])
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    over = threading.Event()
    with start(config) as running:
        # What is said before anybody listens would be heard as fast as it is computed.
        while running.leads and not running.begun:
            time.sleep(0.05)
        threading.Thread(target=speak, args=(writing, over), daemon=True).start()
        if running.leads:
            drive(running.pipeline, config, folder)
            running.close()
        over.set()
        running.wait()


def drive(pipeline: Any, config: Config, folder: Path) -> None:
    """Stream `a`, alone and then beside others."""
    plain, silent = replace(config.sink, video=None), replace(config.source, audio=None)
    a = pipeline.open(replace(config.stream, id="a", chunks=BESIDE), config.source, plain)
    arrivals = Path(os.environ[ARRIVALS])
    while not arrivals.exists() or len(arrivals.read_text().splitlines()) < ALONE:
        time.sleep(0.05)
    count = 0
    while not pipeline.ended(a):
        b = pipeline.open(replace(config.stream, id=f"b{count}", chunks=2), silent, plain)
        while not (pipeline.ended(b) or pipeline.ended(a)):
            time.sleep(0.05)
        count += 1
    pipeline.result(a, WAIT_S)
    (folder / "others.json").write_text(json.dumps(count))


def launched(launcher: str, folder: Path) -> dict[str, Any]:
    """Intervals of `a` in seconds, alone and beside others, and how many these were."""
    folder.mkdir(parents=True)
    module = ["-m", "benchmarks.bystanders", "--scenario", launcher, str(folder)]
    command = [sys.executable, *module]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", *module]
    hook = faults.in_children(folder / "hook", "benchmarks.slowness") if launcher == "ray" else dict(os.environ)
    given = hook | {"OMP_NUM_THREADS": "1", ARRIVALS: str(folder / "arrivals")}
    done = subprocess.run(command, cwd=ROOT, env=given, stderr=subprocess.PIPE, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{launcher} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    moments = [float(line) for line in (folder / "arrivals").read_text().splitlines()]
    gaps = [b - a for a, b in pairwise(moments)]
    # The first chunks find everything cold.
    alone, beside = gaps[4 : ALONE - 1], gaps[ALONE:]
    others = json.loads((folder / "others.json").read_text())
    return {"alone": alone, "beside": beside, "others": others}


def main() -> None:
    """Measure, record, print the bars."""
    if sys.argv[1:2] == ["--scenario"]:
        scenario(sys.argv[2], Path(sys.argv[3]))
        return
    launchers = sys.argv[1:] or list(LAUNCHERS)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for launcher in launchers:
            found = launched(launcher, Path(folder) / launcher)
            alone, beside = (statistics.median(found[name]) for name in ("alone", "beside"))
            change, longest = beside / alone - 1, max(found["beside"]) / beside
            measured[f"{launcher}: p50 interval beside {found['others']} slow streams"] = bar(
                f"{change:+.2%}", "within 5 %", abs(change) <= 0.05
            )
            measured[f"{launcher}: longest interval"] = bar(f"{longest:.2f} x the median", "<= 2 x", longest <= 2)
            measured[f"{launcher}: seconds"] = {
                "p50 alone": round(alone, 4), "p50 beside": round(beside, 4), "longest beside": max(found["beside"]),
            }  # fmt: skip
    given = {"overrides": OVERRIDES, "opening_s": OPENING_S, "files_s": FILES_S, "chunks": [ALONE, BESIDE]}
    record("bystanders", "python -m benchmarks.bystanders " + " ".join(launchers), given, measured)


if __name__ == "__main__":
    main()
