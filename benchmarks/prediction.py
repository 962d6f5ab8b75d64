"""Is what the planner says what happens? `python -m benchmarks.prediction [NAME ...]`.

Ten plans on emulated devices, as torchrun starts them: predicted frames per second, first-frame time and control
latency against what the run then measures. Controls are prompts, given to the running stream at moments spread evenly
over the period of its chunks, so that few of them tell the mean. Bar: each within 5 %.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.emulated import BASE, busy, rate
from benchmarks.launched import start
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from launch.planning import cluster_of, demand, workload_of
from parallel.builders import build
from parallel.cost import Costs
from parallel.predict import Prediction
from parallel.simulated import simulated

CHUNKS, WITHIN = 100, 0.05
APART = 3 + (math.sqrt(5) - 1) / 2
"""Periods between controls: no two in one chunk, and the golden ratio's multiples leave no part of a period out."""
FRAMES = 12
"""Of a chunk."""
STEP, NO_PICTURES = "device.emulated.step_s=0.1", "sink.video=null"
PLANS: dict[str, tuple[int, tuple[str, ...]]] = {
    "timestep on 4": (4, ("plan=timestep", STEP, NO_PICTURES)),
    "timestep on 4 and a decoder": (5, ("plan=timestep", STEP, "device.emulated.decode_s=0.08")),
    "timestep on 4, decode beside": (4, ("plan=timestep", STEP, "device.emulated.decode_s=0.03")),
    "timestep [2,1,1]": (3, ("plan=timestep", "plan.steps=[2,1,1]", STEP, NO_PICTURES)),
    "timestep, one slow": (
        5, ("plan=timestep", "model.steps=5", STEP, NO_PICTURES, "device.emulated.speeds=[1,1,0.667,1,1]"),
    ),
    "timestep, reference": (4, ("plan=timestep", "model.reference=true", STEP, NO_PICTURES)),
    "layers on 2 and a decoder": (3, ("plan=layers", STEP, "device.emulated.decode_s=0.1")),
    "layers [3,2,1]": (3, ("plan=layers", "plan.layers=[3,2,1]", STEP, NO_PICTURES)),
    "grid 2x2 and a decoder": (5, ("plan=grid", STEP, "device.emulated.decode_s=0.06")),
    "clean layers on 2": (2, ("plan=layers", "model.context=clean", STEP, NO_PICTURES)),
}  # fmt: skip


def predicted(workers: int, folder: Path, *overrides: str) -> Prediction:
    """What the planner says of a plan."""
    config = compose("stream", Config, [*BASE, *overrides, f"plan.workers={workers}", f"output_dir={folder}"])
    plan = build(config.plan, workload_of(config))
    return simulated(Costs(plan, cluster_of(config)), demand(config))


def measured(workers: int, folder: Path, every_s: float, *overrides: str) -> dict:
    """The report of a run that is steered every so often."""
    pipe = folder.with_suffix(".orders")
    os.mkfifo(pipe)
    settings = (*BASE, *overrides, f"stream.chunks={CHUNKS}", f"control={pipe}", "sink.trace=all")
    process = start("torchrun", workers, folder, *settings)
    with pipe.open("w") as orders:
        orders.write('{"open": "0"}\n')
        orders.flush()
        while process.poll() is None and not (folder / "trace.0.part").exists():
            time.sleep(0.1)
        begun = time.monotonic()
        for control in range(1, int(CHUNKS / APART)):
            time.sleep(max(0.0, begun + control * every_s - time.monotonic()))
            if process.poll() is not None:
                break
            orders.write('{"prompt": "another", "stream": "0"}\n')
            orders.flush()
    _, err = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"{' '.join(overrides)} failed:\n{err[-3000:]}")
    report = json.loads((folder / "report.json").read_text())
    return report.get("streams", [report])[0]


def compare(name: str, folder: Path) -> dict:
    """Bars of one plan."""
    workers, overrides = PLANS[name]
    said, load = predicted(workers, folder, *overrides), busy()
    found = measured(workers, folder, APART * said.period_s, *overrides)
    pairs = {
        "fps": (said.fps, rate(found) * FRAMES),
        "first frame (s)": (said.first_frame_s, found["time_to_first_frame_s"]),
        "control latency (s)": (said.control_mean_s, found["control_to_frame_s"]["mean"]),
    }
    bars = {}
    for what, (expected, got) in pairs.items():
        off = got / expected - 1
        text = f"{got:.3f} against {expected:.3f} ({off:+.1%})"
        bars[f"{name}: {what}"] = bar(text, f"within {WITHIN:.0%}", abs(off) <= WITHIN)
    return bars | {f"{name}: load before": load}


def main(*only: str) -> bool:
    found: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(PLANS):
            if not only or name in only:
                found |= compare(name, Path(temporary) / str(number))
    configuration = {"chunks": CHUNKS, "plans": {n: list(o) for n, (_, o) in PLANS.items()}}
    record("prediction", "python -m benchmarks.prediction", configuration, found)
    return all(m["passed"] for m in found.values() if isinstance(m, dict))


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
