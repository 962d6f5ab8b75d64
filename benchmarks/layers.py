"""A ring of layers where hidden states travel: `python -m benchmarks.layers [torchrun|ray]`.

Models of one or two steps have nothing to spread over a pipeline of steps, so their layers are: four workers in a ring,
each with a quarter of them, hold their emulated device for 200 ms and send 32 MB on, as a 14B model at 704x384 does.
*Efficiency* is the rate of chunks times the time of a worker's passes for one: 1 if nothing but the passes took time.
One stream under `same_level`, four streams under both rules; each against what the planner says, too.

Every hop copies 32 MB five times (packed, in and out of the system, to the next pass), and all four workers share two
cores: run it on a machine that does nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.emulated import BASE, busy, rate
from benchmarks.launched import run
from benchmarks.prediction import predicted
from benchmarks.record import bar, record

WORKERS, BLOCK_S, WIDTH, LEAST, WITHIN = 4, 0.2, 5120, 0.95, 0.05
RING = (
    "plan=layers", "model.steps=1", f"model.network.layers={2 * WORKERS}", f"model.network.dim={WIDTH}",
    "model.network.heads=40", f"device.emulated.step_s={WORKERS * BLOCK_S}", "sink.video=null",
)  # fmt: skip
CASES = {
    "same_level, 1 stream": ("stream.count=1", "stream.chunks=100"),
    "same_level, 4 streams": ("stream.count=4", "stream.chunks=30"),
    "clean, 4 streams": ("model.context=clean", "stream.count=4", "stream.chunks=20"),
    "grid 2x2 of two steps, same_level, 4 streams": (
        "plan=grid", "plan.grid=[2,2]", "model.steps=2", f"device.emulated.step_s={2 * BLOCK_S}",
        "stream.count=4", "stream.chunks=30",
    ),
}  # fmt: skip


def case(name: str, launcher: str, folder: Path) -> dict:
    """Bars of one case."""
    overrides, load = (*RING, *CASES[name]), busy()
    said = predicted(WORKERS, folder, *overrides)
    passes = 2 if "clean" in name else 1  # the step and the commit
    found = rate(run(launcher, WORKERS, folder, *BASE, *overrides))
    efficiency, off = found * passes * BLOCK_S, found * said.period_s - 1
    return {
        f"{launcher}, {name}: efficiency": bar(f"{efficiency:.3f}", f">= {LEAST}", efficiency >= LEAST),
        f"{launcher}, {name}: against the prediction": bar(f"{off:+.1%}", f"within {WITHIN:.0%}", abs(off) <= WITHIN),
        f"{launcher}, {name}: load before": load,
    }


def main(*only: str) -> bool:
    measured: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        for launcher in [name for name in ("torchrun", "ray") if name in only or not only]:
            for number, name in enumerate(CASES):
                measured |= case(name, launcher, Path(temporary) / f"{launcher}{number}")
    configuration = {
        "block_s": BLOCK_S,
        "workers": WORKERS,
        "overrides": list(RING),
        "cases": {k: list(v) for k, v in CASES.items()},
    }
    record("-".join(("layers", *only)), " ".join(("python -m benchmarks.layers", *only)), configuration, measured)
    return all(m["passed"] for m in measured.values() if isinstance(m, dict))


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
