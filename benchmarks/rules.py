"""What published history rules cost a chunk, over the plain window of the same numbers. `python -m benchmarks.rules`.

Counted at the sizes of Wan2.1 1.3B at 480x832, in steady running: operations, and bytes that are read and written
(`runtime.rule_costs`); and as the simulator has it, seconds from one chunk to the next of a plan that spreads layers
over four H100, without pictures. Runs nothing but arithmetic, both sides of a ratio in one run. Bars: averaging and a
deep sink cost 3 % at most, a choice among tokens 10 %.

The other side is the same model without the rule: same window, attention sink, steps and clean pass. For averaging the
attention sink stands right before the window in both; over one that stays where it was, which need not be turned, it is
told without a bar. So is Rolling Forcing over a loop of the same steps, chunk by chunk.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from launch.planning import cluster_of, demand, workload_of
from parallel.builders import build
from parallel.cost import Costs
from parallel.simulated import simulated
from runtime.arithmetic import rule_cost

PLAN = ("cluster=h100x4", "plan=layers", "plan.workers=4", "sink.video=null")


class Rule(NamedTuple):
    """A rule, and what is without it.

    Attributes:
        rule, plain: overrides; `plain` comes behind those of the rule.
        most: of each ratio; None: it is told, and held against nothing.
    """

    rule: tuple[str, ...]
    plain: tuple[str, ...]
    most: float | None = None


RULES = {
    "averaged sink": Rule(("model=reward_forcing",), ("model.sink_ema=null",), 1.03),
    "deep sink": Rule(
        ("model=deep_forcing", "model.compress=null", "model.sink_frames=14"), ("model.deep_sink=false",), 1.03
    ),
    "chosen tokens": Rule(("model=deep_forcing",), ("model.compress=null", "model.deep_sink=false"), 1.10),
    "averaged sink, over one at its own place": Rule(
        ("model=reward_forcing",), ("model.sink_ema=null", "model.positions=abs")
    ),
    "joint window, over a loop of its steps": Rule(("model=rolling_forcing",), ("model.context=clean",)),
}


class Cost(NamedTuple):
    """Of a chunk."""

    flops: float
    bytes: float
    seconds: float


def cost(*overrides: str) -> Cost:
    """Of a configuration."""
    config = compose("stream", Config, [*PLAN, *overrides])
    counted = rule_cost(config).chunk
    costs = Costs(build(config.plan, workload_of(config)), cluster_of(config))
    return Cost(counted.flops, counted.bytes, simulated(costs, demand(config)).period_s)


def compare(name: str) -> dict:
    """Ratios of one rule, and what they are of."""
    rule, plain, most = RULES[name]
    ours, theirs = cost(*rule), cost(*rule, *plain)
    found: dict = {}
    for what, mine, other in zip(("operations", "bytes", "time"), ours, theirs, strict=True):
        ratio = round(mine / other, 5)
        found[f"{name}: {what}"] = ratio if most is None else bar(ratio, f"<= {most:.2f}", ratio <= most)
        if most is None:
            print(f"      {name}: {what}: {ratio}")
    return found | {f"{name}: of a chunk": {"with": ours._asdict(), "without": theirs._asdict()}}


def main() -> bool:
    found = {key: value for name in RULES for key, value in compare(name).items()}
    configuration = {"plan": PLAN, "rules": {name: rule._asdict() for name, rule in RULES.items()}}
    record("rules", "python -m benchmarks.rules", configuration, found)
    return all(m["passed"] for m in found.values() if isinstance(m, dict) and "passed" in m)


if __name__ == "__main__":
    sys.exit(not main())
