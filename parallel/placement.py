"""Which device every process of a plan runs on, where devices are in several machines, or fewer than processes.

What travels most stays inside a machine where it can: first the processes that share passes (an all-to-all in every
layer), then the workers of a row (hidden states from block to block). From row to row only latents go. Where a machine
has fewer devices than processes, those that compute most have devices of their own as long as there are some, and the
others share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from parallel.plan import Plan

Unit = int | tuple
"""A process, or units that are best kept together."""


def place(
    plan: Plan, nodes: Sequence[int], loads: Sequence[float] | None = None, speeds: Sequence[float] | None = None
) -> tuple[int, ...]:
    """The device of every process: none twice where there are enough.

    Machines are given processes by `hosts`, and each shares them out by `share`. On one machine, and on equal ones that
    rows fill evenly, process i gets device i.

    Args:
        nodes: the machine of every device.
        loads: of every process, on any scale; None: in steps of the whole network, stages beside them nothing.
        speeds: of every device; None: all alike.
    """
    loads = process_loads(plan) if loads is None else loads
    # Where devices are short, machines take more processes in turn.
    seats = [nodes[seat % len(nodes)] for seat in range(max(plan.processes, len(nodes)))]
    at = [seats[seat] for seat in hosts(plan, seats)]
    placed = [0] * plan.processes
    for node in dict.fromkeys(at):
        own = [process for process in range(plan.processes) if at[process] == node]
        there = [device for device, machine in enumerate(nodes) if machine == node]
        shared = share([loads[process] for process in own], [1.0 if speeds is None else speeds[d] for d in there])
        for process, device in zip(own, shared, strict=True):
            placed[process] = there[device]
    return tuple(placed)


def process_loads(plan: Plan) -> list[float]:
    """What every process computes for one chunk, in steps of the whole network."""
    own = plan.load()
    return [own[member.worker] / len(plan.group(member.worker)) for member in plan.members]


def share(loads: Sequence[float], speeds: Sequence[float]) -> tuple[int, ...]:
    """Which of one machine's devices each process has. Where there are enough: in order, one each.

    Else the heaviest goes first, to the device that is free again soonest with it; of equal ones to that with fewest
    processes, then to that of the process before it, with which it talks most. (Longest processing time first: on equal
    devices at most a third more than the best. R. L. Graham, Bounds on multiprocessing timing anomalies, 1969.)

    Args:
        loads: of the processes, in their order.
        speeds: of the devices.
    """
    if len(loads) <= len(speeds):
        return tuple(range(len(loads)))
    busy, held = [0.0] * len(speeds), [0] * len(speeds)
    found: dict[int, int] = {}
    for process in sorted(range(len(loads)), key=lambda process: -loads[process]):

        def rank(device: int, process: int = process) -> tuple:
            ends = round(busy[device] + loads[process] / speeds[device], 9)
            return ends, held[device], device != found.get(process - 1), device

        device = found[process] = min(range(len(speeds)), key=rank)
        busy[device] += loads[process] / speeds[device]
        held[device] += 1
    return tuple(found[process] for process in range(len(loads)))


def hosts(plan: Plan, nodes: Sequence[int]) -> tuple[int, ...]:
    """The seat of every process, none twice, so that what travels most stays in a machine.

    The largest unit that fits a machine whole goes there: all of the plan, else a row, else a worker, else a process.
    Machines are filled one after the other, the one that is in use first and then the one with most room, so that what
    follows is near.

    Args:
        nodes: the machine of every seat; at least as many as the plan has processes.
    """
    room: dict[int, list[int]] = {}
    for seat, node in enumerate(nodes):
        room.setdefault(node, []).append(seat)
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
