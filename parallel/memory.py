"""Bytes on every device under a plan: weights, banks of every stream, and what passes and messages need meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from parallel.cost import Costs
from parallel.partition import prefix_ranges

WORKSPACE = 12
"""Tensors of the size of hidden states that a pass holds at once, where it was not measured: the input, its float32
residual (2), its norm, q, k, v and their result (4), and a feed-forward of 2.7 times the width before and after its
activation; rounded down, since they are not all alive together."""
BUFFERS = 2
"""Messages that a channel keeps room for at each end."""


class Bytes(NamedTuple):
    """On one device. `working`: buffers, a pass's tensors, decoder state of every stream."""

    weights: float
    banks: float
    working: float

    @property
    def total(self) -> float:
        return self.weights + self.banks + self.working


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
        banks = self.streams * self.plan.bank_bytes(worker)
        return Bytes(self.plan.weight_bytes(worker), banks, self.working(worker))

    def usable(self, worker: int) -> float:
        """What a worker's smallest device has."""
        return min(self.costs.cluster.devices[d].usable_bytes for d in self.costs.groups[worker])

    def short(self, worker: int) -> float:
        """Bytes that are missing; zero or less where all fits."""
        return self.of(worker).total - self.usable(worker)

    def working(self, worker: int) -> float:
        """Neither weights nor banks; the same for any number of layers."""
        plan, times = self.plan, self.costs.times_of(worker)
        total = 0.0
        if plan.blocks_of(worker):
            estimate = WORKSPACE * plan.workload.hidden_bytes / plan.degree
            total += estimate if times.step_bytes is None else times.step_bytes
        for stage in plan.stages:
            own = {"decode": times.decode_bytes, "post": times.post_bytes}.get(stage.name)
            total += self.streams * (own or 0.0) * (stage.worker == worker)
        if worker == plan.encode:
            total += times.encode_bytes or 0.0
        largest: dict[tuple[int, int], float] = {}
        for source, target, size in self.costs.traffic:
            if worker in (source, target):
                largest[source, target] = max(size, largest.get((source, target), 0.0))
        return total + BUFFERS * sum(largest.values())

    def ranges(self, worker: int, block: int) -> np.ndarray:
        """Total bytes of a worker, for any range of layers its block might be."""
        plan, w = self.plan, self.plan.workload
        times, banks = self.streams * len(plan.levels_of(worker, block)), w.banks(plan.degree)
        matrix = prefix_ranges([own + times * bank for own, bank in zip(w.layer_bytes, banks, strict=True)])
        matrix[0, :] += w.first_bytes
        matrix[:, w.layers] += w.last_bytes
        return matrix + w.range_bytes + plan.stage_bytes(worker) + self.working(worker)
