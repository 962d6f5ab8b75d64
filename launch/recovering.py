"""What exact recovery takes of a run's machines, told before it runs; refused where they do not have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import inf, isfinite

import torch

from conf.errors import UserError
from conf.schema import Config
from launch import planning
from launch.figures import human, number, seconds
from parallel.cluster import Cluster
from parallel.cost import Costs
from parallel.cuts import SHARE, Cuts, Logged, Needs, needs
from parallel.plan import Plan
from parallel.planner import Choice, assess
from parallel.simulated import simulated
from runtime.room import free_bytes
from runtime.workload import logged

PART = 0.5
"""Of a machine's memory that a folder in memory may take, as Linux has it."""


def choice_of(config: Config, cluster: Cluster) -> Choice:
    """What is predicted for a run's plan on a cluster.

    Raises:
        UserError: it names devices that there are not.
    """
    return assess(config.plan, planning.workload_of(config), cluster, planning.demand(config), check=simulated)


def needed(config: Config, choice: Choice, cluster: Cluster) -> Needs:
    """What exact recovery takes of a plan on a cluster."""
    costs, demand = Costs(choice.plan, cluster, choice.placement), planning.demand(config)
    return needs(costs, logged(config), demand, choice.prediction, config.launcher.recover_s)


def asked(config: Config) -> bool:
    """Whether cuts are made: under torchrun streams go on from states on disk."""
    return config.launcher.in_place


def told(config: Config, choice: Choice, cluster: Cluster) -> str:
    """What exact recovery takes, and what happens where that is not there: a few lines.

    Raises:
        UserError: a machine has too little memory.
    """
    found = needed(config, choice, cluster)
    refuse(config, choice.plan, logged(config), found, _spared(cluster), f"a machine of cluster={cluster.name}")
    return "\n".join(_lines(config, choice, cluster, found))


def notes(config: Config) -> Iterator[str]:
    """What was asked for and has no effect, on one line."""
    spares = config.launcher.spares
    if spares and not asked(config):
        why = "torchrun starts all ranks again" if config.launcher.recovers else "launcher.recover is not exact"
        yield f"launcher.spares={spares} has no effect: {why}"


def _lines(config: Config, choice: Choice, cluster: Cluster, found: Needs) -> Iterator[str]:
    launcher, streams = config.launcher, config.stream.count
    often = f"every {found.every} chunks" if found.every > 1 else "before every chunk"
    yield f"Recovery, launcher.recover={launcher.recover}: a cut {often}, {seconds(found.work_s)} of work."
    if not found.allowed:
        yield (
            f"  launcher.recover_s={launcher.recover_s:g} asks for one every {found.wanted}, which devices cannot copy "
            f"to their hosts: with {found.every} they can."
        )
    copies = [(w, rate) for w, rate in enumerate(found.rates) if rate]
    for rate, group in groupby(copies, key=lambda one: human(one[1])):
        workers = [worker for worker, _ in group]
        size = human(found.dirty[workers[0]])
        yield f"  To the host: {rate}/s from {_workers(workers)}, {size} a cut{_way(found, workers)}."
    each = f", {streams} streams" if streams > 1 else ""
    for node, size in found.memory.items():
        where = f"machine {node}" if len(found.memory) > 1 else "the machine"
        has = "" if cluster.host_bytes is None else f", of {human(PART * cluster.host_bytes)} in {launcher.cuts}"
        yield f"  Memory of {where}{each}: {human(size)}{has}."
    loads = "no loading: a spare has loaded" if launcher.spares else "the loading of a new process (none with a spare)"
    yield f"  A loss costs {seconds(found.replay_s)} of replay at most, and {loads}."
    yield f"  A dead process is seen at once, a silent one after {launcher.silent_s:g} s."
    if launcher.spares:
        yield _spares(launcher.spares, choice, cluster)
    yield "  A device that is slower to its host makes cuts less often. Where memory lacks, the run is refused: a"
    yield "  smaller launcher.recover_s takes less of it, and so do fewer streams; launcher.recover=off takes none."


def _way(found: Needs, workers: Sequence[int]) -> str:
    """What a device has for copies, where that is known."""
    way = min(found.bandwidths[worker] for worker in workers)
    return f". Limit: {human(SHARE * way)}/s, {number(100 * SHARE)} % of the link" if isfinite(way) else ""


def _spares(count: int, choice: Choice, cluster: Cluster) -> str:
    """What spares hold, and where."""
    free = max(0, len(cluster.devices) - len(set(choice.placement)))
    own, shared = min(free, count), max(0, count - free)
    places = [f"{own} on {'a device of its own' if own == 1 else 'devices of their own'}"] * (own > 0)
    places += [f"{shared} on {'devices' if shared > 1 else 'a device'} that a worker has"] * (shared > 0)
    size = human(choice.plan.spare_bytes)
    each = f"{count} spares hold {size} each" if count > 1 else f"1 spare holds {size}"
    return f"  {each}, the weights of all workers: {', '.join(places)}."


def _workers(numbers: Sequence[int]) -> str:
    whole = len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1
    said = f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers))
    return f"each of workers {said}" if len(numbers) > 1 else f"worker {said}"


def _spared(cluster: Cluster) -> float:
    return inf if cluster.host_bytes is None else PART * cluster.host_bytes


def refuse(config: Config, plan: Plan, kept: Logged, found: Needs, free: float, where: str) -> None:
    """Refuse cuts that a machine's memory has no room for.

    Args:
        kept: what cuts keep of a stream.
        free: bytes for cuts on each machine.
        where: what has them, in words.

    Raises:
        UserError: what is needed and there, and what fits.
    """
    most = max(found.memory.values(), default=0.0)
    if most <= free:
        return
    streams = config.stream.count
    often = sum(Cuts(plan, kept, found.every).memory(worker) for worker in range(plan.workers))
    least = sum(Cuts(plan, kept, 1).memory(worker) for worker in range(plan.workers))
    fit = int(free // (most / streams))
    remedies = []
    if found.every > 1 and most * least / often <= free:
        remedies.append(f"launcher.recover_s={number(found.work_s / found.every)}")
    if 0 < fit < streams:
        remedies.append(f"stream.count={fit}")
    raise UserError(
        f"launcher.recover={config.launcher.recover} launcher.cuts={config.launcher.cuts}",
        f"cuts of {streams} stream{'s' * (streams > 1)} take {human(most)} of memory, and {where} has {human(free)} "
        "for them",
        f"set {', or '.join([*remedies, 'launcher.recover=off'])}",
    )


def check(config: Config, plan: Plan) -> None:
    """Refuse a run of this machine whose cuts its memory has no room for, before anything loads.

    Raises:
        UserError: they have none, or there is no such folder.
    """
    if not asked(config) or config.launcher.name != "local" or config.device.kind == "emulated":
        return
    free, kept = free_here(config.launcher.cuts), logged(config)
    ring = Cuts(plan, kept, len(kept.most))
    if config.stream.count * sum(ring.memory(worker) for worker in range(plan.workers)) <= free:
        return  # however often cuts are made, and nothing need be predicted
    cluster = planning.cluster_of(config)
    found = needed(config, choice_of(config, cluster), cluster)
    refuse(config, plan, kept, found, free, "this machine")


def free_here(folder: str) -> float:
    """Bytes that a folder in this machine's memory can take.

    Raises:
        UserError: there is no such folder.
    """
    try:
        there = os.statvfs(folder)
    except OSError as error:
        rule = f"is no folder to be used ({error.strerror})"
        raise UserError(f"launcher.cuts={folder}", rule, "give one in memory (tmpfs), as /dev/shm is") from error
    return min(there.f_bavail * there.f_frsize, free_bytes(torch.device("cpu"))[1])
