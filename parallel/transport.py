"""By which way bodies travel: through NCCL, from card to card, or through the memories of the hosts.

Both ends of a channel decide by the same rule on the same data: what each says of its place, what the user asks for
(`launcher.transport`) and the bytes that the plan foresees. Peer access is not asked for: without it NCCL goes through
memory that two processes share, and needs fewer copies than a socket does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import combinations
from typing import NamedTuple

import torch.distributed as dist

from conf.errors import UserError
from devices import Device, nccl_version
from devices.kinds import GPU
from parallel.address import gloo_device
from parallel.plan import Plan

NCCL = "nccl"
LARGE = 1 << 20
"""Bytes of a body that `auto` gives to NCCL when there are more. Latents are fewer (0.4 MB for 704x384): through the
hosts they take about a millisecond beside passes of a hundred, while a communicator takes seconds to make and holds
memory for as long as the run lasts. Hidden states are more (32 MB): through the hosts they take a tenth of a pass."""
BEYOND = {"auto": LARGE, NCCL: 0, "host": math.inf}
"""By `launcher.transport`, the bytes beyond which a body goes by NCCL where that is possible."""
QUEUES = 4
"""Blocks of threads (`max_ctas`) with which a communicator of two moves bodies. They suffice for tens of GB/s and leave
the other multiprocessors to the passes; by default NCCL takes up to 32."""


class Place(NamedTuple):
    """Where a process computes.

    Attributes:
        card: UUID of its device; empty: the processor.
        library: by which its device exchanges tensors with others of its kind, and the version; empty: there is none.
    """

    card: str = ""
    library: str = ""

    @classmethod
    def of(cls, device: Device) -> Place:
        """This process's."""
        return cls(device.where(), (nccl_version() or "") if device.kind == GPU else "")


def why_not(a: Place, b: Place) -> str | None:
    """Why NCCL cannot go between two processes; None: it can."""
    if not (a.card and b.card):
        return "compute on the processor, or one of them does"
    if a.card == b.card:
        return f"are on one device ({a.card})"
    if not (a.library and a.library == b.library):
        return f"have different libraries for it: {a.library or 'none'} and {b.library or 'none'}"
    return None


def by_nccl(transport: str, places: Sequence[Place], size: float) -> bool:
    """Whether bodies of up to `size` bytes go by NCCL among the processes at `places`.

    Args:
        transport: as `launcher.transport`.
    """
    return size > BEYOND[transport] and not any(why_not(a, b) for a, b in combinations(places, 2))


def of_channels(plan: Plan, transport: str) -> str:
    """By which way the bodies of channels are to travel, where `transport` is what was asked for.

    Where several processes share passes, their exchanges have communicators of their own, beside which threads of
    channels would use theirs. NCCL is known to have hung in such a mix (pytorch issue 175145), so `auto` does not try.
    """
    return "host" if transport == "auto" and plan.degree > 1 else transport


def bodies(plan: Plan) -> dict[tuple[int, int], int]:
    """By channel (source, target), the bytes of the longest body that the plan foresees."""
    largest = dict.fromkeys(plan.channels, 0)
    for hop in plan.hops:
        largest[hop.source, hop.target] = max(largest[hop.source, hop.target], hop.bytes)
    return largest


def communicators(plan: Plan, transport: str, places: Sequence[Place]) -> Iterator[tuple[int, ...]]:
    """The communicators of a run, each as the processes in it.

    A channel, one direction between two workers, has one if its bodies are large: two directions in one would need a
    common order, and wait for each other for ever without. Processes that share passes have one for all they exchange.

    Args:
        places: of every process.
    """
    first = {worker: plan.group(worker)[0] for worker in range(plan.workers)}
    groups = [(plan.group(worker), math.inf) for worker in range(plan.workers)]
    pairs = [((first[a], first[b]), size) for (a, b), size in bodies(plan).items()]
    for found, way in ((groups, transport), (pairs, of_channels(plan, transport))):
        for members, size in found:
            if len(members) > 1 and by_nccl(way, [places[m] for m in members], size):
                yield members


def refuse(plan: Plan, places: Sequence[Place]) -> None:
    """Refuse `launcher.transport=nccl` where bodies are to travel between processes that NCCL cannot join.

    Args:
        places: of every process.

    Raises:
        UserError: it names two of them.
    """
    pairs = [pair for worker in range(plan.workers) for pair in combinations(plan.group(worker), 2)]
    pairs += [(plan.group(a)[0], plan.group(b)[0]) for (a, b), size in bodies(plan).items() if size]
    for a, b in pairs:
        if why := why_not(places[a], places[b]):
            raise UserError(
                "launcher.transport=nccl",
                f"processes {min(a, b)} and {max(a, b)} {why}",
                "use launcher.transport=auto, or give every process a GPU of its own and the same torch",
            )


def told_places(store: dist.Store, rank: int, size: int, place: Place) -> list[Place]:
    """Tell the others where this process is, and wait for what they tell. All of them call it.

    Args:
        store: shared by them, and nobody else's keys in it.

    Raises:
        RuntimeError: one did not tell within the store's timeout.
    """
    store.set(f"place/{rank}", json.dumps(place))
    return [Place(*json.loads(store.get(f"place/{other}"))) for other in range(size)]


def gloo(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Backend:
    """A process group between hosts' memories."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [gloo_device(store)]
    options._threads = 1  # they serve collectives: one at a time, or none
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def nccl(store: dist.Store, rank: int, size: int, timeout: timedelta, queues: int | None = None) -> dist.Backend:
    """A process group over NCCL.

    Args:
        timeout: longest wait of a transfer; then NCCL's watchdog ends the process.
        queues: how many it uses at most; None: as many as NCCL likes.
    """
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    if queues is not None:
        options.config.max_ctas = queues
    return dist.ProcessGroupNCCL(store, rank, size, options)
