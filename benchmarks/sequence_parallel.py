"""Shared passes give the oracle's latents within rounding and divide banks: `python -m benchmarks.sequence_parallel`.

`nano` in float32, 40 chunks (the ring holds 4), a prompt change at chunk 17 and recalibration at chunk 4: the final
latents of `plan.sequence_parallel=2`, alone and inside `timestep` and `layers`, under torchrun and Ray, against the
sequential oracle's, for both context rules; and of 4 processes alone, with four heads. Bank bytes of every process
against those of the plan that does not share. For one degree, one hash under every plan and launcher.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.launched import run
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from parallel.builders import build
from parallel.plan import Plan
from runtime.workload import describe

TOLERANCE = 1e-5
BASE = (
    "model=nano", "model.dtype=float32", "stream.chunks=40", "sink.video=null", "stream.prompt=hello",
    "stream.events=[{chunk: 17, prompt: other}]", "model.recalibrate_chunk=4",
)  # fmt: skip
PLANS = {
    "alone": ("plan=sequential", "plan.sequence_parallel=2"),
    "timestep": ("plan=timestep", "plan.sequence_parallel=2"),
    "layers": ("plan=layers", "plan.sequence_parallel=2"),
}
CASES = [
    ((f"model.context={context}",), name, overrides)
    for context in ("same_level", "clean")
    for name, overrides in PLANS.items()
] + [(("model.network.heads=4",), "alone, by 4", ("plan=sequential", "plan.sequence_parallel=4"))]
LAUNCHERS = ("torchrun", "ray")


def plans(overrides: Sequence[str]) -> tuple[Plan, Plan]:
    """The plan, and the same without sharing."""
    config = compose("stream", Config, [*BASE, *overrides, "output_dir=unused"])
    workload = describe(config)
    return build(config.plan, workload), build(replace(config.plan, sequence_parallel=1), workload)


def main() -> bool:
    measured, hashes = {}, defaultdict(set)
    with tempfile.TemporaryDirectory() as temporary:
        count = iter(range(1000))

        def stream(launcher: str, processes: int, *overrides: str) -> tuple[dict, dict]:
            """The final latents and the report of a run."""
            folder = Path(temporary) / str(next(count))
            file = folder.with_suffix(".safetensors")
            report = run(launcher, processes, folder, *BASE, *overrides, f"sink.latents={file}")
            return load_file(file), report

        oracles = {rules: stream("sequential", 1, *rules)[0] for rules, _, _ in CASES}
        for rules, name, overrides in CASES:
            shared, alone = plans((*rules, *overrides))
            whole = [alone.bank_bytes(member.worker) for member in shared.members]
            for launcher in LAUNCHERS:
                found, report = stream(launcher, shared.processes, *rules, *overrides)
                worst = max((found[key] - x).abs().max().item() for key, x in oracles[rules].items())
                banks = list(report["bank_bytes"].values())
                title = f"{rules[0].split('.')[-1]}: {name} on {launcher}, {shared.processes} processes"
                good = found.keys() == oracles[rules].keys() and worst <= TOLERANCE
                measured[f"{title}, max abs difference"] = bar(worst, f"<= {TOLERANCE:g} over 40 chunks", good)
                hashes[rules].add(report["latents_sha256"][:12])
                parts = [b * shared.degree for b in banks]
                measured[f"{title}, bank bytes"] = bar(banks, f"1/{shared.degree} of {whole}", parts == whole)
    for rules, found in hashes.items():
        same = bar(sorted(found), "one for every plan and launcher", len(found) == 1)
        measured[f"{rules[0].split('.')[-1]}: latents_sha256"] = same
    record("sequence_parallel", "python -m benchmarks.sequence_parallel", {"base": BASE, "plans": PLANS}, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())
