"""Bytes on every device under a plan: weights, what streams keep, and what passes and messages need meanwhile.

What the driver and libraries take for the first process is the kind's `reserve_bytes`, and no part of this.
"""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np

from parallel.cost import Costs
from parallel.partition import prefix_ranges
from parallel.transport import Place, communicators

WORKSPACE = 12
"""Tensors of the size of hidden states that a pass holds at once, where it was not measured: the input, its float32
residual (2), its norm, q, k, v and their result (4), and a feed-forward of 2.7 times the width before and after its
activation; rounded down, since they are not all alive together."""
BUFFERS = 2
"""Messages that a channel keeps room for at each end."""
EPOCHS = 2
"""Prompts of a stream whose keys and values there are at once: the new one's are made while the old one holds."""


class Bytes(NamedTuple):
    """Of one process. `banks`: of every stream, with keys and values of text, and what passes of a chunk have in
    common; `passes`: buffers, communicators, a pass's tensors; `stages`: what those beside cells keep of every stream
    and take at work."""

    weights: float
    banks: float
    passes: float
    stages: float

    @property
    def total(self) -> float:
        return sum(self)


class Memory:
    """Bytes of a plan's workers; those of a worker's first process, which holds most.

    Args:
        costs: the plan on its cluster.
        streams: open at once.
    """

    def __init__(self, costs: Costs, streams: int = 1):
        self.costs, self.plan, self.streams = costs, costs.plan, streams

    def of(self, worker: int) -> Bytes:
        """Of a worker's first process."""
        layers = sum(len(self.plan.blocks[b]) for b in self.plan.blocks_of(worker))
        banks = self.streams * (self.plan.bank_bytes(worker) + layers * self.text)
        return Bytes(self.plan.weight_bytes(worker), banks, self.passes(worker), self.stages(worker))

    @property
    def text(self) -> int:
        """What one layer keeps of the text of one stream, at most: a recording reads a copy that stays in its place."""
        w = self.plan.workload
        return w.states_bytes * (EPOCHS + w.recorded)

    def usable(self, worker: int) -> float:
        """What a worker's device has for its first process beside all others on it; of several devices the least."""
        found = []
        for process, device in zip(self.plan.group(worker), self.costs.groups[worker], strict=True):
            on, beside = self.costs.cluster.devices[device], [p for p in self._on[device] if p != process]
            found.append(on.usable_bytes - sum(self._held(p) + on.sheet.context_bytes for p in beside))
        return min(found)

    @cached_property
    def _on(self) -> dict[int, list[int]]:
        """Processes on every device."""
        found: dict[int, list[int]] = {}
        for process, device in enumerate(chain.from_iterable(self.costs.groups)):
            found.setdefault(device, []).append(process)
        return found

    def _held(self, process: int) -> float:
        """All of a process; who only shares passes has no stages beside them."""
        member = self.plan.members[process]
        stages = self.plan.stage_bytes(member.worker) + self.stages(member.worker)
        return self.of(member.worker).total - stages * (not member.leads)

    def short(self, worker: int) -> float:
        """Bytes that are missing; zero or less where all fits."""
        return self.of(worker).total - self.usable(worker)

    def stages(self, worker: int) -> float:
        """What the stages that a worker has beside cells take beside their weights: where it was measured that, for
        every stream."""
        times, found = self.costs.times_of(worker), 0.0
        measured = {"encode": times.encode_bytes, "decode": times.decode_bytes, "post": times.post_bytes}
        for name, taken in self.plan.taken(worker).items():
            own = measured.get(name)
            found += taken.once + self.streams * taken.each if own is None else self.streams * own
        return found

    def passes(self, worker: int) -> float:
        """What passes and messages take; the same for any number of layers."""
        plan, times = self.plan, self.costs.times_of(worker)
        total = 0.0
        if plan.blocks_of(worker):
            estimate = WORKSPACE * plan.workload.hidden_bytes / plan.degree
            # What is recorded has memory of its own beside that of passes which are not.
            total += (estimate if times.step_bytes is None else times.step_bytes) * (1 + plan.workload.recorded)
        largest: dict[tuple[int, int], float] = {}
        for source, target, size in self.costs.traffic:
            if worker in (source, target):
                largest[source, target] = max(size, largest.get((source, target), 0.0))
        first = plan.group(worker)[0]
        peers = sum(len(members) - 1 for members in self._communicators if first in members)
        sheet = self.costs.cluster.devices[self.costs.groups[worker][0]].sheet
        return total + BUFFERS * sum(largest.values()) + sheet.peer_bytes * peers

    @cached_property
    def _communicators(self) -> list[tuple[int, ...]]:
        """Processes that the library which joins devices joins, where `launcher.transport` does not say otherwise. All
        devices have one library."""
        on = {process: Place(str(device), "any") for device, there in self._on.items() for process in there}
        return list(communicators(self.plan, "auto", [on[process] for process in range(self.plan.processes)]))

    def ranges(self, worker: int, block: int) -> np.ndarray:
        """Total bytes of a worker, for any range of layers its block might be."""
        plan, w = self.plan, self.plan.workload
        times, banks = self.streams * len(plan.levels_of(worker, block)), w.banks(plan.degree)
        text = self.streams * self.text
        matrix = prefix_ranges([own + times * bank + text for own, bank in zip(w.layer_bytes, banks, strict=True)])
        matrix[0, :] += w.first_bytes
        matrix[:, w.layers] += w.last_bytes
        return matrix + w.range_bytes + plan.stage_bytes(worker) + self.passes(worker) + self.stages(worker)
