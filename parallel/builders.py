"""Builders: from `plan=NAME` and a few numbers to a plan, or to a refusal with its reason and remedy."""

from __future__ import annotations

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


def _workers(config: PlanConfig, cells: int, workload: Workload) -> int:
    """How many workers: those of the cells, and one more for the last stage where there is one to spare."""
    wanted = cells + workload.decodes if config.workers is None else config.workers
    if not cells <= wanted <= cells + 1:
        raise UserError(
            f"plan.workers={wanted}",
            f"plan={config.name} here is {cells} workers, or {cells + 1} with decode on its own",
            f"use plan.workers={cells + 1}, or other sizes",
        )
    return wanted


def _grid(config: PlanConfig, workload: Workload, steps: list[int], layers: list[int]) -> Plan:
    """Step groups x blocks: every other plan is a grid with one row or one column."""
    cells = len(steps) * len(layers)
    workers = _workers(config, cells, workload)
    owners = []
    for group, count in enumerate(steps):
        owners += [tuple(group * len(layers) + b for b in range(len(layers)))] * count
    return Plan(config.name, workload, _ranges(layers), tuple(owners), encode=0, decode=workers - 1, workers=workers)


def sequential(config: PlanConfig, workload: Workload) -> Plan:
    """Everything on one worker."""
    if config.workers not in (None, 1):
        raise UserError(f"plan.workers={config.workers}", "plan=sequential is one worker", "use plan=timestep")
    whole = (range(workload.layers),)
    return Plan("sequential", workload, whole, ((0,),) * workload.steps, encode=0, decode=0, workers=1)


def timestep(config: PlanConfig, workload: Workload) -> Plan:
    """A step, or a few neighbouring ones, per worker; decode beside the last, or on its own where there is room."""
    groups = len(config.steps) if config.steps else min(workload.steps, config.workers or workload.steps)
    steps = _sizes("plan.steps", config.steps, workload.steps, groups, "steps")
    return _grid(config, workload, steps, [workload.layers])


def layers(config: PlanConfig, workload: Workload) -> Plan:
    """A block of layers per worker; the steps of a chunk go round the ring."""
    if config.layers:
        blocks = len(config.layers)
    elif config.workers is None:
        blocks = 2
    else:
        blocks = config.workers - (workload.decodes and config.workers > 2)
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
    if config.sequence_parallel != 1:
        raise UserError(
            f"plan.sequence_parallel={config.sequence_parallel}", "is not built yet", "use plan.sequence_parallel=1"
        )
    return BUILDERS[config.name](config, workload)
