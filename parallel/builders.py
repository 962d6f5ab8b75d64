"""Builders: from `plan=NAME` and a few numbers to a plan, or to a refusal with its reason and remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conf.errors import UserError
from conf.schema import PlanConfig
from parallel.plan import Plan, Workload


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` in `parts` sizes that differ by one at most, larger first: the last worker often decodes too."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _sizes(
    setting: str, given: Sequence[int] | None, total: int, parts: int, what: str, asked: str = "", remedy: str = ""
) -> list[int]:
    """The sizes given, or an even split; refused unless they cover `total`.

    Args:
        asked, remedy: what asked for so many parts, and what to do where there are too many.
    """
    if given is None:
        if not 1 <= parts <= total:
            raise UserError(asked, f"there are {total} {what}", remedy or f"use 1 to {total}")
        return split_evenly(total, parts)
    if sum(given) != total or min(given) < 1:
        raise UserError(
            f"{setting}={list(given)}",
            f"must be sizes above zero that add up to {total} {what}",
            f"use {split_evenly(total, min(len(given), total))}",
        )
    return list(given)


def _ranges(sizes: Sequence[int]) -> tuple[range, ...]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(range(a, a + n) for a, n in zip(starts, sizes, strict=True))


def degree_of(config: PlanConfig, workload: Workload) -> int:
    """Processes that share every pass: each gets as many heads, and as many tokens of every frame.

    Raises:
        UserError: they do not divide evenly; names the nearest degrees that do.
    """
    degree, heads, tokens = config.sequence_parallel, workload.heads, workload.tokens_per_frame
    if heads % degree or tokens % degree:
        divided = math.gcd(heads, tokens)
        fit = [d for d in range(1, divided + 1) if divided % d == 0]
        nearest = [*[d for d in fit if d < degree][-1:], *[d for d in fit if d > degree][:1]]
        raise UserError(
            f"plan.sequence_parallel={degree}",
            f"must divide the model's {heads} heads and the {tokens} tokens of a frame",
            f"use {' or '.join(map(str, nearest))}",
        )
    return degree


PLACED = ("encode", "decode", "post")
"""Settings that place a stage."""


def _given(config: PlanConfig) -> list[int]:
    """Workers that were named for a stage."""
    return [worker for setting in PLACED if (worker := getattr(config, setting)) is not None]


def _apart(config: PlanConfig, workload: Workload, cells: int, decodes: bool) -> int:
    """Workers without cells, if `cells` have some: those named for a stage, and one for decode where none is named."""
    named = {worker for worker in _given(config) if worker >= cells}
    return len(named) + (decodes and config.decode is None and workload.decodes)


def _with_cells(config: PlanConfig, workload: Workload) -> int:
    """How many of `plan.workers` run cells, where the plan is free to choose."""
    degree, workers = config.sequence_parallel, config.workers
    if degree > 1:
        return workers // degree
    # A worker named for a stage has nothing else, if those behind it have not either.
    for cells in range(1, workers):
        if cells + _apart(config, workload, cells, decodes=workers > 2) == workers:
            return cells
    return workers


def _grid(config: PlanConfig, workload: Workload, steps: list[int], layers: list[int]) -> Plan:
    """Step groups x blocks: every other plan is a grid with one row or one column.

    `plan.workers` counts processes: those of the cells, and one more for every worker that has nothing but stages.
    """
    if workload.undivided and len(steps) > 1:
        remedy = "use plan=layers, or plan.sequence_parallel"
        raise UserError(f"plan={config.name}", f"puts steps on different workers, but {workload.undivided}", remedy)
    degree, cells = degree_of(config, workload), len(steps) * len(layers)
    processes, named = cells * degree, _given(config)
    needed = max([cells + _apart(config, workload, cells, decodes=True), *(worker + 1 for worker in named)])
    wanted = processes + needed - cells if config.workers is None else config.workers
    workers = cells + max(0, wanted - processes)
    encode = 0 if config.encode is None else config.encode
    free = [w for w in range(cells, workers) if w not in named] if workload.decodes else []
    decode = config.decode if config.decode is not None else (free or [workers - 1])[-1]
    _check_stages(config, workload, workers)
    idle = set(range(cells, workers)) - {encode, decode, config.post}
    if wanted < processes or idle:
        grouped = f" in groups of {degree}" if degree > 1 else ""
        raise UserError(
            f"plan.workers={wanted}",
            f"plan={config.name} here is {processes} workers{grouped}, or {processes + 1} with decode on its own",
            f"use plan.workers={processes + 1}, or other sizes",
        )
    owners = []
    for group, count in enumerate(steps):
        owners += [tuple(group * len(layers) + b for b in range(len(layers)))] * count
    ranges = _ranges(layers)
    limit = config.in_flight
    return Plan(config.name, workload, ranges, tuple(owners), encode, decode, workers, degree, limit, config.post)


def _check_stages(config: PlanConfig, workload: Workload, workers: int) -> None:
    """Refuse a stage on a worker that there is not, or that there is no such stage."""
    if config.post is not None and not workload.posts:
        raise UserError(f"plan.post={config.post}", "there is no post stage", "leave plan.post out, or choose a post")
    for setting in PLACED:
        worker = getattr(config, setting)
        if worker is not None and not 0 <= worker < workers:
            rule = f"workers are 0 to {workers - 1}" if workers > 1 else "there is one worker, 0"
            raise UserError(f"plan.{setting}={worker}", rule, f"use plan.{setting}={workers - 1}")


def sequential(config: PlanConfig, workload: Workload) -> Plan:
    """Everything on one worker."""
    degree = degree_of(config, workload)
    if config.workers not in (None, degree):
        rule = f"here is {degree} workers in one group" if degree > 1 else "is one worker"
        remedy = f"use plan=timestep, or plan.workers={degree} (torchrun --nproc-per-node={degree})"
        raise UserError(f"plan.workers={config.workers}", f"plan=sequential {rule}", remedy)
    _check_stages(config, workload, 1)
    whole = (range(workload.layers),)
    return Plan("sequential", workload, whole, ((0,),) * workload.steps, 0, 0, 1, degree, config.in_flight)


def timestep(config: PlanConfig, workload: Workload) -> Plan:
    """A step, or a few neighbouring ones, per worker; stages beside them, or on their own where there is room."""
    if config.steps:
        groups = len(config.steps)
    elif config.workers is None:
        groups = workload.steps
    else:
        groups = min(workload.steps, max(1, config.workers // config.sequence_parallel))
    steps = _sizes("plan.steps", config.steps, workload.steps, groups, "steps")
    return _grid(config, workload, steps, [workload.layers])


def layers(config: PlanConfig, workload: Workload) -> Plan:
    """A block of layers per worker; the steps of a chunk go round the ring."""
    if config.layers:
        blocks = len(config.layers)
    elif config.workers is None:
        blocks = 2
    else:
        blocks = max(1, _with_cells(config, workload))
    most = workload.layers * config.sequence_parallel + _apart(config, workload, workload.layers, decodes=True)
    asked = "plan=layers" if config.workers is None else f"plan.workers={config.workers}"
    remedy = "use plan=sequential" if config.workers is None else f"use plan.workers={most} or fewer"
    sizes = _sizes("plan.layers", config.layers, workload.layers, blocks, "layers", asked, remedy)
    return _grid(config, workload, [workload.steps], sizes)


def grid(config: PlanConfig, workload: Workload) -> Plan:
    """Step groups x blocks."""
    shape = list(config.grid or (len(config.steps or (0, 0)), len(config.layers or (0, 0))))
    if len(shape) != 2:
        raise UserError(f"plan.grid={shape}", "is two numbers: step groups and blocks", "use [2,2]")
    steps = _sizes("plan.steps", config.steps, workload.steps, shape[0], "steps", f"plan.grid={shape}")
    sizes = _sizes("plan.layers", config.layers, workload.layers, shape[1], "layers", f"plan.grid={shape}")
    return _grid(config, workload, steps, sizes)


BUILDERS = {"sequential": sequential, "timestep": timestep, "layers": layers, "grid": grid}
SHAPES = {"steps": ("timestep", "grid"), "layers": ("layers", "grid"), "grid": ("grid",)}
"""Settings of a plan's shape, and the plans that follow them."""


def _check_followed(config: PlanConfig) -> None:
    """Refuse a shape that the plan would not have."""
    for setting, plans in SHAPES.items():
        given = getattr(config, setting)
        if given is not None and config.name not in plans:
            wanted = " or ".join(f"plan={name}" for name in plans)
            raise UserError(f"plan.{setting}={list(given)}", f"plan={config.name} does not follow it", f"use {wanted}")


def check_every_process(devices: Sequence[int] | None, processes: int) -> None:
    """Refuse `plan.devices` of another number of processes; None: nothing is asked for.

    Raises:
        UserError: names the number.
    """
    if devices is not None and len(devices) != processes:
        rule = f"names one device for every process (here {processes})"
        raise UserError(f"plan.devices={list(devices)}", rule, "give as many, or leave it out")


def build(config: PlanConfig, workload: Workload) -> Plan:
    """The plan that a configuration asks for.

    Raises:
        UserError: the sizes do not fit the workload or each other, or not every process has a device.
    """
    _check_followed(config)
    plan = BUILDERS[config.name](config, workload)
    check_every_process(config.devices, plan.processes)
    return plan
