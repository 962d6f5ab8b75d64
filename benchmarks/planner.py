"""Random clusters and models: the planner against every contiguous plan. `python -m benchmarks.planner [CASES]`.

Bar: in each of 2,000 cases the planner's plan has the period of the best plan that brute force finds. Periods that
differ by a thousandth count as equal, as they do in the planner's own ranking.
"""

from __future__ import annotations

import random
import sys
from typing import NamedTuple

from benchmarks.record import bar, record
from benchmarks.uneven import best_by_hand, planned

CASES = 2000
SPEEDS, LAYER_S, DECODE_S = (0.5, 1.0, 2.0), (0.1, 0.2, 0.35, 0.5), (0.0, 0.3, 1.1)
"""Speeds of devices; seconds of a layer in one step, and of decode."""
SAME = 1.002
"""Periods in this proportion are equal."""


class Case(NamedTuple):
    """A cluster and a model, as `best_by_hand` takes them."""

    speeds: list[float]
    layer_s: list[float]
    steps: int
    decode_s: float


def case(draw: random.Random) -> Case:
    """One to four devices, four or five layers, one to three steps."""
    speeds = draw.choices(SPEEDS, k=draw.randint(1, 4))
    layer_s = draw.choices(LAYER_S, k=draw.randint(4, 5))
    return Case(speeds, layer_s, draw.randint(1, 3), draw.choice(DECODE_S))


def equal(case: Case) -> bool:
    """Whether the planner finds the best period; prints the case if not."""
    best, choice = best_by_hand(*case), planned(*case)
    found = choice.prediction.period_s
    same = best * (1 - 1e-9) <= found <= best * SAME
    if not same:
        print(f"{case}: {found:.4g} s ({choice.prediction.bound}), and brute force has {best:.4g} s", flush=True)
    return same


def main(cases: str = str(CASES)) -> bool:
    draw, count = random.Random(0), int(cases)
    right = sum(equal(case(draw)) for _ in range(count))
    configuration = {"cases": count, "seed": 0, "speeds": SPEEDS, "layer_s": LAYER_S, "decode_s": DECODE_S}
    measured = {"equal to brute force": bar(f"{right} of {count}", f"{count} of {count}", right == count)}
    record("planner", f"python -m benchmarks.planner {count}", configuration, measured)
    return right == count


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
