"""Does every worker hold what its plan says, and nothing else? `python -m benchmarks.owned`.

`weight_bytes` that each process counts over what it loaded, against the plan's prediction, within 1 %.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.launched import run
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from parallel.builders import build
from runtime.workload import describe

PLANS = {
    "timestep": (5, ("plan=timestep",)),
    "layers [3,2,1] and a decoder": (4, ("plan=layers", "plan.layers=[3,2,1]")),
    "grid 2x2 and a decoder": (5, ("plan=grid",)),
}


def main() -> bool:
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, (workers, plan_overrides)) in enumerate(PLANS.items()):
            folder = Path(temporary) / str(number)
            overrides = ("model=pocket_avatar", "stream.chunks=2", *plan_overrides)
            found = run("torchrun", workers, folder, *overrides)["weight_bytes"]
            config = compose("stream", Config, [*overrides, f"plan.workers={workers}", f"output_dir={folder}"])
            plan = build(config.plan, describe(config))
            predicted = [plan.weight_bytes(i) for i in range(workers)]
            worst = max(abs(found[f"worker{i}"] / p - 1) for i, p in enumerate(predicted))
            rule = f"within 1 % of {predicted}"
            measured[name] = bar(list(found.values()), rule, worst <= 0.01)
    record("owned", "python -m benchmarks.owned", {"model": "pocket_avatar"}, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())
