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


def _sizes(setting: str, given: Sequence[int] | None, total: int, parts: int, what: str) -> list[int]:
    """The sizes given, or an even split; refused unless they cover `total`."""
    if given is None:
        if not 1 <= parts <= total:
            raise UserError(f"{setting}: {parts} parts", f"there are {total} {what}", f"use 1 to {total}")
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


def _alone(config: PlanConfig, workload: Workload) -> bool:
    """Whether `plan.workers` leaves a process that the last stage has for itself."""
    degree = config.sequence_parallel
    return config.workers % degree == 1 if degree > 1 else workload.decodes and config.workers > 2


def _grid(config: PlanConfig, workload: Workload, steps: list[int], layers: list[int]) -> Plan:
    """Step groups x blocks: every other plan is a grid with one row or one column.

    `plan.workers` counts processes: those of the cells, and one more for the last stage where there is one to spare.
    """
    degree, cells = degree_of(config, workload), len(steps) * len(layers)
    processes = cells * degree
    wanted = processes + workload.decodes if config.workers is None else config.workers
    workers = cells + max(0, wanted - processes)
    encode = 0 if config.encode is None else config.encode
    decode = workers - 1 if config.decode is None else config.decode
    if not processes <= wanted <= processes + 1 + (encode >= cells) or not set(range(cells, workers)) <= {
        encode,
        decode,
    }:
        grouped = f" in groups of {degree}" if degree > 1 else ""
        raise UserError(
            f"plan.workers={wanted}",
            f"plan={config.name} here is {processes} workers{grouped}, or {processes + 1} with decode on its own",
            f"use plan.workers={processes + 1}, or other sizes",
        )
    for setting, worker in (("encode", encode), ("decode", decode)):
        if not 0 <= worker < workers:
            raise UserError(
                f"plan.{setting}={worker}", f"workers are 0 to {workers - 1}", f"use plan.{setting}={workers - 1}"
            )
    owners = []
    for group, count in enumerate(steps):
        owners += [tuple(group * len(layers) + b for b in range(len(layers)))] * count
    ranges = _ranges(layers)
    return Plan(config.name, workload, ranges, tuple(owners), encode, decode, workers, degree, config.in_flight)


def sequential(config: PlanConfig, workload: Workload) -> Plan:
    """Everything on one worker."""
    degree = degree_of(config, workload)
    if config.workers not in (None, degree):
        rule = f"here is {degree} workers in one group" if degree > 1 else "is one worker"
        raise UserError(f"plan.workers={config.workers}", f"plan=sequential {rule}", "use plan=timestep")
    whole = (range(workload.layers),)
    return Plan("sequential", workload, whole, ((0,),) * workload.steps, 0, 0, 1, degree, config.in_flight)


def timestep(config: PlanConfig, workload: Workload) -> Plan:
    """A step, or a few neighbouring ones, per worker; decode beside the last, or on its own where there is room."""
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
        blocks = max(1, (config.workers - _alone(config, workload)) // config.sequence_parallel)
    sizes = _sizes("plan.layers", config.layers, workload.layers, blocks, "layers")
    return _grid(config, workload, [workload.steps], sizes)


def grid(config: PlanConfig, workload: Workload) -> Plan:
    """Step groups x blocks."""
    shape = list(config.grid or (len(config.steps or (0, 0)), len(config.layers or (0, 0))))
    if len(shape) != 2:
        raise UserError(f"plan.grid={shape}", "is two numbers: step groups and blocks", "use [2,2]")
    steps = _sizes("plan.steps", config.steps, workload.steps, shape[0], "steps")
    sizes = _sizes("plan.layers", config.layers, workload.layers, shape[1], "layers")
    return _grid(config, workload, steps, sizes)


BUILDERS = {"sequential": sequential, "timestep": timestep, "layers": layers, "grid": grid}


def build(config: PlanConfig, workload: Workload) -> Plan:
    """The plan that a configuration asks for.

    Raises:
        UserError: the sizes do not fit the workload or each other.
    """
    return BUILDERS[config.name](config, workload)
