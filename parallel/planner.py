"""The planner: of all plans on a cluster, the best by what is predicted for them.

Enumerates shapes (`parallel.shapes`), cuts layers for each by dynamic programming (`parallel.partition`), predicts
(`parallel.predict`), ranks, and refuses what does not fit in memory or is too slow to be steered. A chosen plan is an
ordinary one: `Choice.config` is what a user would have written to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from conf.errors import UserError
from conf.schema import PlanConfig
from parallel.builders import PLACED, build, check_every_process, split_evenly
from parallel.cluster import Cluster
from parallel.cost import Costs, Ranges
from parallel.memory import Bytes, Memory
from parallel.partition import least_bottleneck, least_sum
from parallel.placement import place
from parallel.plan import FULL, Plan, Workload
from parallel.predict import Demand, Prediction, filling, predict
from parallel.shapes import Shape, orders, shapes

CLOSE = 1e-3
"""Relative difference below which two values of an objective count as equal."""
CHECKED = 10
"""Plans that a second opinion is asked on."""
Predictor = Callable[[Costs, Demand], Prediction]


@dataclass(frozen=True)
class Choice:
    """A plan with what is predicted for it.

    Attributes:
        config: asks for the plan by the ordinary names; `config.devices` is the device of every process.
        plan: what `builders.build` makes of it.
        prediction: what it will do.
        bytes: on the first device of every worker.
        usable: bytes that device has for that worker.
    """

    config: PlanConfig
    plan: Plan
    prediction: Prediction
    bytes: tuple[Bytes, ...]
    usable: tuple[float, ...]

    @property
    def placement(self) -> tuple[int, ...]:
        """The device of every process."""
        return tuple(self.config.devices or range(self.plan.processes))

    @property
    def short(self) -> float:
        """Bytes missing on the worst device; zero or less where all fits."""
        return max(b.total - u for b, u in zip(self.bytes, self.usable, strict=True))


def assess(
    config: PlanConfig, workload: Workload, cluster: Cluster, demand: Demand, check: Predictor | None = None
) -> Choice:
    """A plan that was asked for, on a cluster: prediction and bytes, refusing nothing but what cannot be placed. Where
    there are fewer devices than processes, some share one.

    Args:
        check: predicts in place of the formulas.

    Raises:
        UserError: the plan cannot be built, or names devices that there are not.
    """
    plan = build(config, workload)
    check_devices(config.devices, len(cluster.devices), cluster.name)
    if config.devices is None:
        config = replace(config, devices=_unless_plain(place(plan, cluster.nodes)))
    placement = tuple(config.devices) if config.devices else None
    costs = Costs(plan, cluster, placement)
    choice = _choice(config, costs, demand)
    return choice if check is None else replace(choice, prediction=check(costs, demand))


def check_devices(wanted: Sequence[int] | None, count: int, cluster: str) -> None:
    """Refuse devices that a cluster has not.

    Args:
        wanted: as `plan.devices`; None: nothing is asked for.
        count: of its devices.
        cluster: its name.

    Raises:
        UserError: names the numbers that there are.
    """
    if wanted is not None and not set(wanted) <= set(range(count)):
        rule = f"devices of cluster={cluster} are 0 to {count - 1}" if count > 1 else f"cluster={cluster} has one, 0"
        raise UserError(f"plan.devices={list(wanted)}", rule, "name these, or leave it out")


def rank(
    workload: Workload,
    cluster: Cluster,
    demand: Demand,
    objective: str = "fps",
    wanted: PlanConfig | None = None,
    check: Predictor | None = None,
) -> list[Choice]:
    """All plans that fit and may be, best first.

    Args:
        objective: `fps` (frames per second of all streams), `first_frame` or `control_latency` (the worst).
        wanted: settings beside `plan=auto` that narrow the search: `workers`, `sequence_parallel`, `in_flight`,
            `devices`, `force`.
        check: predicts the best few once more (`parallel.simulated`), and they are ranked by what it says.

    Raises:
        UserError: nothing fits (and by how much), or nothing is fast enough to be steered.
    """
    wanted = wanted or PlanConfig(name="auto")
    _check_wanted(wanted)
    asked = f"plan.workers={wanted.workers}"
    if wanted.devices is not None:
        check_devices(wanted.devices, len(cluster.devices), cluster.name)
        asked, wanted = f"plan.devices={wanted.devices}", replace(wanted, workers=wanted.workers or len(wanted.devices))
        check_every_process(wanted.devices, wanted.workers)
    found: list[Choice] = []
    nearest: Choice | None = None
    for choice in _search(workload, cluster, demand, wanted):
        if choice.short <= 0:
            found.append(choice)
        elif nearest is None or choice.short < nearest.short:
            nearest = choice
    if not found:
        if nearest is None:
            raise UserError(
                asked,
                f"no plan of this model has as many processes on cluster={cluster.name}",
                "use another number",
            )
        raise too_big(nearest, cluster)
    found = _sorted(_quick(found, demand, wanted.force), objective)
    if check is not None:
        checked = [replace(c, prediction=check(Costs(c.plan, cluster, c.placement), demand)) for c in found[:CHECKED]]
        found = _sorted(_quick(checked, demand, wanted.force), objective) + found[CHECKED:]
    return found


def choose(
    workload: Workload,
    cluster: Cluster,
    demand: Demand,
    objective: str = "fps",
    wanted: PlanConfig | None = None,
    check: Predictor | None = None,
) -> Choice:
    """The best plan. Arguments and refusals as of `rank`."""
    return rank(workload, cluster, demand, objective, wanted, check)[0]


def _quick(found: list[Choice], demand: Demand, force: bool) -> list[Choice]:
    """Those in which a control shows soon enough, if anybody needs that.

    Raises:
        UserError: it does in none.
    """
    limit = demand.max_control_latency_s
    if not demand.interactive or limit is None or force:
        return found
    quick = [c for c in found if c.prediction.control_worst_s <= limit]
    if not quick:
        raise too_slow(min(found, key=lambda c: c.prediction.control_worst_s), demand)
    return quick


def refuse(choice: Choice, cluster: Cluster, demand: Demand, force: bool = False) -> None:
    """Refuse a plan that was asked for, if it does not fit or is too slow to be steered.

    Raises:
        UserError: by how much.
    """
    if choice.short > 0:
        raise too_big(choice, cluster)
    _quick([choice], demand, force)


def too_big(choice: Choice, cluster: Cluster) -> UserError:
    """What is missing where."""
    missing = [b.total - u for b, u in zip(choice.bytes, choice.usable, strict=True)]
    worker = int(np.argmax(missing))
    own, plan = choice.bytes[worker], choice.plan
    device = choice.placement[plan.group(worker)[0]]
    kind, shared = cluster.devices[device].kind, choice.placement.count(device) > 1
    beside = f" beside {choice.placement.count(device) - 1} other processes" if shared else ""
    return UserError(
        f"plan={plan.name} on {plan.processes} devices of cluster={cluster.name}",
        f"worker {worker} needs {_gb(own.total)} (weights {_gb(own.weights)}, banks {_gb(own.banks)}, passes and "
        f"messages {_gb(own.passes)}, stages beside them {_gb(own.stages)}) and a {kind} has "
        f"{_gb(max(0, choice.usable[worker]))}{beside}: {_gb(missing[worker])} too much",
        "use more devices, fewer streams or a shorter window",
    )


def too_slow(choice: Choice, demand: Demand) -> UserError:
    """How late a control would show at worst."""
    return UserError(
        f"plan={choice.plan.name} on {choice.plan.processes} devices",
        f"a control would show after {choice.prediction.control_worst_s:.2f} s at worst, and "
        f"stream.max_control_latency_s is {demand.max_control_latency_s:g}",
        "use objective=control_latency, more devices, a higher limit, or plan.force=true",
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _check_wanted(wanted: PlanConfig) -> None:
    """`plan=auto` chooses what other plans are told."""
    for setting in ("steps", "layers", "grid", *PLACED):
        if getattr(wanted, setting) is not None:
            raise UserError(
                f"plan.{setting}={getattr(wanted, setting)}", "is chosen by plan=auto", "leave it out, or name a plan"
            )


# -- the search -----------------------------------------------------------------------------------------------------


def _search(workload: Workload, cluster: Cluster, demand: Demand, wanted: PlanConfig) -> Iterator[Choice]:
    """For every shape and device order the partitions worth a prediction.

    A device is shared only if more workers are wanted than there are devices: a stage may be beside any worker's cells,
    so a worker more on the same device does nothing sooner.
    """
    ranges = Ranges(workload, cluster)
    degree = wanted.sequence_parallel if wanted.sequence_parallel > 1 else None
    most = max(len(cluster.devices), wanted.workers or 0)
    for shape in shapes(workload, most, wanted.workers, degree):
        for placement in orders(cluster, shape.sizes, wanted.devices):
            yield from of_shape(shape, placement, ranges, demand, wanted)


def of_shape(
    shape: Shape, placement: tuple[int, ...], ranges: Ranges, demand: Demand, wanted: PlanConfig | None = None
) -> Iterator[Choice]:
    """The best plans of one shape on given devices: with the least bottleneck, and with the shortest route."""
    workload, cluster = ranges.workload, ranges.cluster
    more = {"force": wanted.force, "in_flight": wanted.in_flight} if wanted else {}
    probe = build(shape.config(split_evenly(workload.layers, shape.blocks)), workload)
    if (cluster.uniform or probe.processes > len(cluster.devices)) and not (wanted and wanted.devices):
        placement = _placed(probe, ranges)
    costs = Costs(probe, cluster, placement, ranges)
    for layers in _partitions(costs, Memory(costs, demand.streams)):
        config = shape.config(layers, devices=_unless_plain(placement), **more)
        costs = Costs(build(config, workload), cluster, placement, ranges)
        for limited in _with_room(config, costs):
            costs.plan = replace(costs.plan, limit=limited.in_flight)
            yield _choice(limited, costs, demand)


def _placed(plan: Plan, ranges: Ranges) -> tuple[int, ...]:
    """Where processes go if equal devices are taken in order, as launchers do it, and others by their speeds."""
    cluster = ranges.cluster
    if cluster.uniform and plan.processes <= len(cluster.devices):
        return place(plan, cluster.nodes)
    own = Costs(plan, cluster, (0,) * plan.processes, ranges).load()
    loads = [own[member.worker] / len(plan.group(member.worker)) for member in plan.members]
    return place(plan, cluster.nodes, loads, [d.speed for d in cluster.devices])


def _unless_plain(placement: tuple[int, ...]) -> list[int] | None:
    return None if placement == tuple(range(len(placement))) else list(placement)


def _partitions(costs: Costs, memory: Memory) -> list[list[int]]:
    """Sizes of blocks: those with the least bottleneck (of these the shortest route), and those with the shortest
    route of all; if nothing fits, those that come nearest."""
    plan = costs.plan
    load, way, excess = [], [], []
    for b in range(len(plan.blocks)):
        held = sorted({row[b] for row in plan.owners})
        over = np.maximum.reduce([memory.ranges(w, b) - memory.usable(w) for w in held])
        own = np.maximum.reduce([costs.fixed_s(w) + costs.layers_s(w, b) + costs.beside_s(w) for w in held])
        load.append(np.where(over <= 0, own, np.inf))
        way.append(costs.way_s(b))
        excess.append(over)
    bottleneck, _ = least_bottleneck(load)
    if not np.isfinite(bottleneck):
        return [least_bottleneck(excess)[1]]
    found = [least_sum(load, way, cap)[1] for cap in (bottleneck, np.inf)]
    return found[:1] if found[0] == found[1] else found


def _with_room(config: PlanConfig, costs: Costs) -> list[PlanConfig]:
    """With as many chunks in flight as keep the slowest stage busy, and as many as nearly do, for less latency.

    A plan's own limit takes all layers and all devices for equal. Here their times are known, so it does not count.
    """
    if config.in_flight is not None:
        return [config]
    rooms = {ceil(round(filling(costs, share), 6)) for share in (1.0, FULL)}
    return [replace(config, in_flight=room) for room in sorted(rooms)]


def _choice(config: PlanConfig, costs: Costs, demand: Demand) -> Choice:
    memory = Memory(costs, demand.streams)
    workers = range(costs.plan.workers)
    held, usable = tuple(memory.of(w) for w in workers), tuple(memory.usable(w) for w in workers)
    return Choice(config, costs.plan, predict(costs, demand), held, usable)


def _sorted(found: list[Choice], objective: str) -> list[Choice]:
    """Best first; of plans that are as good, the better one in the other respects, then the one on fewer devices."""

    def key(choice: Choice) -> tuple:
        p, plan = choice.prediction, choice.plan
        values = {"fps": -p.fps, "first_frame": p.first_frame_s, "control_latency": p.control_worst_s}
        first = values.pop(objective)
        rest = [first, values.get("control_latency", p.control_worst_s), p.first_frame_s, -p.fps]
        return (*(_coarse(v) for v in rest), plan.processes, p.travels, len(plan.blocks), plan.workers)

    return sorted(found, key=key)


def _coarse(value: float) -> float:
    """On a scale of steps of `CLOSE`, so that what differs by rounding is equal."""
    return float(np.sign(value) * np.round(np.log(abs(value)) / CLOSE)) if value else -np.inf
