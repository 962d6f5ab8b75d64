"""A prediction by execution: the plan's own schedule in virtual time, where formulas leave out that passes collide.

Has the face of `parallel.predict.predict`, so either can be asked, and one held against the other.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import ceil

from parallel.cost import Costs
from parallel.durations import PlanDurations
from parallel.predict import Demand, Prediction, predict
from parallel.simulator import Chunk, Simulator

FILLINGS = 6
"""Times the pipeline is filled before anything counts."""
COLLIDES = 0.02
"""Share of the period beyond which passes that wait for each other are worth a word."""
LEAST = 60
"""Chunks that count, at least."""


def simulated(costs: Costs, demand: Demand) -> Prediction:
    """What `predict` says, with times, rates and latencies as they came out; idle periods, loads and bytes are its own.

    A control comes at any moment alike, so a gap g between two samplings counts g times: it waits g / 2 in the mean
    and g at worst, and then as long as it takes from that chunk's sampling to the first frame of what it sampled.
    """
    said = predict(costs, demand)
    simulator = Simulator(costs.plan, PlanDurations(costs), devices=costs.groups)
    play = demand.frames / demand.fps
    for stream in range(demand.streams):
        simulator.open(stream, live=(lambda chunk: chunk * play) if demand.paced else None)
    settled = max((v.in_force_from for v in costs.plan.workload.versions), default=0)
    # Chunks may leave in bursts as long as there are blocks or chunks in flight: whole ones are counted.
    turn = demand.streams * said.in_flight * len(costs.plan.blocks)
    count, warm = turn * ceil(LEAST / turn), demand.streams * settled + FILLINGS * turn
    ahead = costs.plan.workload.ahead
    simulator.run(lambda: len(simulator.chunks) > warm + count + demand.streams * ahead)
    left = simulator.chunks
    steady = left[warm : warm + count + 1]
    period = (steady[-1].left - steady[0].left) / (len(steady) - 1)
    later = left[warm : warm + count + 1 + demand.streams * ahead]
    mean, worst = _control([c for c in later if c.stream == 0], ahead)
    # What limits the plan, or the viewer where that is slower.
    watched = play / demand.streams if demand.paced else 0.0
    least, bound = max((said.period_s, said.bound), (watched, "how fast it is watched"))
    if period >= least * (1 + COLLIDES):
        bound = f"{bound}, and passes that collide"
    return replace(
        said,
        period_s=period,
        bound=bound,
        fps=demand.frames / period,
        first_frame_s=next(c.shown for c in left if c.stream == 0 and c.number == 0),
        chunk_latency_s=sum(c.left - c.granted for c in steady) / len(steady),
        control_mean_s=mean,
        control_worst_s=worst,
    )


def _control(chunks: list[Chunk], ahead: int) -> tuple[float, float]:
    """Mean and worst latency of a control, over consecutive chunks of one stream.

    Args:
        ahead: so many chunks later leaves what is sampled with a chunk (`Workload.ahead`).
    """
    made = zip(pairwise(chunks), chunks[1 + ahead :], strict=False)
    gaps = [(b.sampled - a.sampled, later.shown - b.sampled) for (a, b), later in made]
    total = sum(gap for gap, _ in gaps)
    return sum(gap * (gap / 2 + way) for gap, way in gaps) / total, max(gap + way for gap, way in gaps)
