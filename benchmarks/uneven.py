"""One of five devices is 1.5 times slower: the planner against every contiguous plan. `python -m benchmarks.uneven`.

Runs nothing but arithmetic: what the plan does when it runs is `benchmarks.prediction`'s business. Bar: the planner's
plan has at least 0.95 of the throughput of the best contiguous plan that brute force finds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import permutations

from benchmarks.record import bar, record
from conf.schema.cluster import ClusterConfig, DeviceGroup, DeviceKind, StageTimes
from parallel.cluster import Cluster, Subject
from parallel.plan import Workload
from parallel.planner import choose
from parallel.predict import Demand
from parallel.shapes import compositions

SLOW = 1 / 1.5
CASES = {
    "6 equal layers, decode 30 ms": ([0.01] * 6, 0.03),
    "8 uneven layers, decode 150 ms": ([0.02, 0.01, 0.01, 0.015, 0.01, 0.01, 0.005, 0.02], 0.15),
    "12 equal layers, no decode": ([0.01] * 12, 0.0),
    "12 uneven layers, no decode": ([0.02, 0.01, 0.01, 0.015, 0.01, 0.01, 0.005, 0.02, 0.01, 0.012, 0.01, 0.01], 0.0),
}
"""Seconds of every layer in one step, and of decode."""
STEPS = 4


def best_by_hand(speeds: Sequence[float], layer_s: Sequence[float], steps: int, decode_s: float) -> float:
    """The least period of any contiguous plan: step groups, blocks, decode beside a worker or apart, any device order.

    Without the planner's code: the busiest worker's seconds per chunk.
    """
    best = float("inf")
    for groups in range(1, steps + 1):
        for blocks in range(1, len(speeds) // groups + 1):
            cells = groups * blocks
            orders = {n: set(permutations(speeds, n)) for n in (cells, cells + 1) if n <= len(speeds)}
            for counts in compositions(steps, groups):
                for sizes in compositions(len(layer_s), blocks):
                    edges = [sum(sizes[:b]) for b in range(blocks)]
                    block_s = [sum(layer_s[e : e + n]) for e, n in zip(edges, sizes, strict=True)]
                    own = [count * s for count in counts for s in block_s]
                    for decode in range(cells + (cells < len(speeds))):
                        work = own + [0.0] * (decode == cells)
                        work[decode] += decode_s
                        for order in orders[len(work)]:
                            best = min(best, max(w / v for w, v in zip(work, order, strict=True)))
    return best


def planned(speeds: Sequence[float], layer_s: list[float], steps: int, decode_s: float):
    """What the planner chooses."""
    config = ClusterConfig(
        name="uneven",
        kinds={"gpu": DeviceKind(memory_bytes=80e9)},
        devices=[DeviceGroup(speed=speed) for speed in speeds],
        times=[StageTimes(model="any", layer_s=layer_s, decode_s=decode_s)],
    )
    workload = Workload(steps=steps, layers=len(layer_s), layer_bytes=(0,) * len(layer_s))
    return choose(workload, Cluster.of(config, Subject("any")), Demand())


def main() -> bool:
    measured = {}
    for name, (layer_s, decode_s) in CASES.items():
        for place in range(5):
            speeds = [SLOW if i == place else 1.0 for i in range(5)]
            choice = planned(speeds, layer_s, STEPS, decode_s)
            share = best_by_hand(speeds, layer_s, STEPS, decode_s) / choice.prediction.period_s
            plan = choice.plan
            cells = f"{[plan.owners.count(r) for r in plan.rows]} steps x {[len(b) for b in plan.blocks]} layers"
            measured[f"{name}, device {place} slow"] = bar(
                f"{share:.3f} of the best ({plan.name}, {cells}, on devices {list(choice.placement)})",
                ">= 0.95",
                share >= 0.95,
            )
    configuration = {"steps": STEPS, "cases": CASES, "slow": SLOW}
    record("uneven", "python -m benchmarks.uneven", configuration, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())
