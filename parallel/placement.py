"""Which device every process of a plan runs on, where devices are in several machines.

What travels most stays inside a machine where it can: first the processes that share passes (an all-to-all in every
layer), then the workers of a row (hidden states from block to block). From row to row only latents go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from parallel.plan import Plan

Unit = int | tuple
"""A process, or units that are best kept together."""


def place(plan: Plan, nodes: Sequence[int]) -> tuple[int, ...]:
    """The device of every process.

    The largest unit that fits a machine whole goes there: all of the plan, else a row, else a worker, else a process.
    Machines are filled one after the other, the one that is in use first and then the one with most room, so that what
    follows is near. On one machine, and on equal ones that rows fill evenly, process i gets device i.

    Args:
        nodes: the machine of every device; at least as many as the plan has processes.

    Returns:
        A device for each process, none twice.
    """
    room: dict[int, list[int]] = {}
    for device, node in enumerate(nodes):
        room.setdefault(node, []).append(device)
    placed: dict[int, int] = {}
    current: int | None = None

    def put(unit: Unit) -> None:
        nonlocal current
        processes = _processes(unit)
        # Most room first, and of equal ones the first; the machine in use before all.
        best = max(room, key=lambda node: (node == current and bool(room[node]), len(room[node])))
        fits = [node for node in room if len(room[node]) >= len(processes)]
        if best not in fits:
            best = max(fits, key=lambda node: len(room[node]), default=None)
        if best is not None:
            current = best
            for process in processes:
                placed[process] = room[best].pop(0)
        else:
            for part in unit:
                put(part)

    put(units(plan))
    return tuple(placed[process] for process in range(plan.processes))


def units(plan: Plan) -> tuple:
    """A plan as what is best kept together: rows of workers of processes, then the workers without cells."""
    rows = [tuple(plan.group(worker) for worker in row) for row in plan.rows]
    owners = {worker for row in plan.rows for worker in row}
    return (*rows, *(plan.group(worker) for worker in range(plan.workers) if worker not in owners))


def crossing(plan: Plan, nodes: Sequence[int], placement: Sequence[int]) -> dict[str, int]:
    """What crosses between machines: pairs of workers by what passes, and as `shared` workers that are in several."""
    at = [nodes[placement[process]] for process in range(plan.processes)]
    pairs = {(hop.what, hop.source, hop.target) for hop in plan.hops}
    found = Counter(what for what, a, b in pairs if at[plan.group(a)[0]] != at[plan.group(b)[0]])
    found["shared"] = sum(len({at[process] for process in plan.group(worker)}) > 1 for worker in range(plan.workers))
    return {what: count for what, count in found.items() if count}


def _processes(unit: Unit) -> tuple[int, ...]:
    return (unit,) if isinstance(unit, int) else tuple(chain.from_iterable(map(_processes, unit)))
