"""Another plan for a run that is under way: what an order asks for, or the best for what is left of its workers.

A stream goes on from its banks with the latents that it would have had, so what decides their bits stays: processes
that share passes stay as many. All else of a plan may change.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from conf.errors import UserError
from conf.schema import Config, PlanConfig
from conf.typed import typed
from launch import planning
from parallel.builders import build
from parallel.cluster import Cluster
from parallel.plan import Plan
from parallel.planner import Choice, assess, rank

CLOSE = 1e-3
"""Relative difference below which two rates are equal."""


class Replanned(NamedTuple):
    """A plan of fewer workers.

    Attributes:
        config: asks for it.
        plan: itself.
        fps: frames per second that are predicted for it, of all streams together.
        in_time: streams that it serves as fast as they are watched, by that.
    """

    config: PlanConfig
    plan: Plan
    fps: float
    in_time: int


def changed(config: Config, changes: dict[str, Any]) -> PlanConfig:
    """The plan that a running one is to become.

    What is not said follows from what is: of a plan of that name, which is the running one's unless another is said,
    with as many processes to a pass. `auto` is the planner's best.

    Args:
        config: the run, with the plan that it has now.
        changes: keys of `plan`.

    Raises:
        UserError: a key or a value is wrong, the model has no such plan, or other processes would share passes.
    """
    now = config.plan
    kept = PlanConfig(now.name, sequence_parallel=now.sequence_parallel, force=now.force)
    plan = typed(PlanConfig, asdict(kept) | typed(dict[str, Any], changes, "plan"), "plan")
    workload = planning.workload_of(config)
    if plan.name == "auto":
        cluster = _cluster(config)
        found = rank(workload, cluster, planning.demand(config), config.objective, plan)
        if (best := _of_degree(found, now.sequence_parallel)) is None:
            rule = f"no plan of so many workers has the {now.sequence_parallel} processes to a pass that run"
            raise UserError(f"plan.workers={plan.workers}", rule, "ask for another number")
        return best.config
    if (degree := build(plan, workload).degree) != now.sequence_parallel:
        rule = f"the run has {now.sequence_parallel}, and its latents' bits would change"
        raise UserError(f"plan.sequence_parallel={degree}", rule, "leave it out, or start a run with it")
    return plan


def fewer(config: Config, workers: int, streams: int | None = None) -> Replanned | None:
    """The best plan of at most so many processes, by what is predicted for it; None: the model fits on none.

    Control latency is no reason against it: late is better than over.

    Args:
        config: the run, with the plan that it has now.
        workers: processes that are left.
        streams: that are open; None: as many as the configuration says.
    """
    if streams:
        config = replace(config, stream=replace(config.stream, count=streams))
    degree, best, workload = config.plan.sequence_parallel, None, planning.workload_of(config)
    search = workload, _cluster(config), planning.demand(config)
    for count in range(workers, 0, -1):
        wanted = PlanConfig("auto", workers=count, sequence_parallel=degree, force=True)
        found = _best(*search, "fps", wanted)
        # Of two that are as fast, the one on more workers stays nearer to what runs.
        if found is not None and (best is None or found.prediction.fps > best.prediction.fps * (1 + CLOSE)):
            best = found
    if best is None:
        return None
    fps = best.prediction.fps
    return Replanned(best.config, best.plan, fps, math.floor(fps / config.model.fps + CLOSE))


def speed(config: Config, first: Config) -> float:
    """How fast the plan of a run is, by what is predicted, of the one that it began with.

    Args:
        config, first: the run, with the plan that it has now and with its first.
    """
    now, then = (
        assess(one.plan, planning.workload_of(one), _cluster(one), planning.demand(one)) for one in (config, first)
    )
    return now.prediction.fps / then.prediction.fps


def _cluster(config: Config) -> Cluster:
    """What the run is on; where devices are emulated there is one for each of its processes."""
    workers = config.plan.workers or build(config.plan, planning.workload_of(config)).processes
    return planning.cluster_of(replace(config, plan=replace(config.plan, workers=workers)))


def _best(*search: Any) -> Choice | None:
    """The best plan of a search with as many processes to a pass as are wanted; None: nothing fits."""
    try:
        return _of_degree(rank(*search), search[-1].sequence_parallel)
    except UserError:
        return None


def _of_degree(found: list[Choice], degree: int) -> Choice | None:
    return next((choice for choice in found if choice.plan.degree == degree), None)
