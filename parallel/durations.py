"""How long what the simulator lets happen takes: work, messages, and what a viewer waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from parallel.cost import Costs
from parallel.passes import MARKS, ROUTE, STAGES, Pass
from parallel.plan import Cell


class Durations(Protocol):
    """How long things take."""

    def work(self, worker: int, item: Pass) -> float:
        """A pass, on its worker."""
        ...

    def sample(self, stream: int, chunk: int) -> float:
        """Drawing a chunk's noise, beside what the encode worker's device does."""
        ...

    def encode(self, stream: int, chunk: int) -> float:
        """Encoding a chunk's conditioning, on the encode worker's device."""
        ...

    def handling(self, worker: int) -> float:
        """What a worker spends on a message that it sends or takes in."""
        ...

    def travel(self, source: int, target: int, item: Pass) -> tuple[float, float]:
        """(how long a message keeps the link busy, how much later it is there)."""
        ...

    def shown(self, item: Pass) -> float:
        """From the beginning of a chunk's first pass on the last stages to its first frame being out."""
        ...


class PlanDurations:
    """Durations of a plan on a cluster.

    Args:
        costs: the plan's.
        factor: (worker, pass) -> what its duration is multiplied with, for jitter.
    """

    def __init__(self, costs: Costs, factor: Callable[[int, Pass], float] = lambda worker, item: 1.0):
        self.costs, self.plan, self.factor = costs, costs.plan, factor
        self._known: dict[tuple, float] = {}

    def work(self, worker: int, item: Pass) -> float:
        path = self.plan.workload.passes[item.kind].path
        share = self.plan.workload.share_of(item.step) if path == ROUTE else 1
        begins = path == ROUTE and Cell(item.step, item.block) in self.plan.beginning
        key = worker, item.kind, item.block, share, begins, *((item.step, item.chunk == 0) if path == STAGES else ())
        if key not in self._known:
            self._known[key] = self._work(worker, item, path) * share
        return self._known[key] * self.factor(worker, item)

    def _work(self, worker: int, item: Pass, path: str) -> float:
        if path == STAGES:
            return self.costs.stage_s(self.plan.stage_of(item), first=item.chunk == 0)
        if path == ROUTE:
            return self.costs.cell_s(Cell(item.step, item.block))
        return 0.0 if path == MARKS else self.costs.pass_s(item.kind, worker, item.block)

    def sample(self, stream: int, chunk: int) -> float:
        return self.costs.sample_s()

    def encode(self, stream: int, chunk: int) -> float:
        return self.costs.encode_s(first=chunk == 0)

    def handling(self, worker: int) -> float:
        return self.costs.handling_s(worker)

    def travel(self, source: int, target: int, item: Pass) -> tuple[float, float]:
        link = self.costs.cluster.link(self.costs.groups[source][0], self.costs.groups[target][0])
        passes = self.plan.workload.passes
        size = passes[item.kind].cargo(self.plan.workload, item) if item.kind in passes else 0
        return size / link.bandwidth, link.latency_s

    def shown(self, item: Pass) -> float:
        return self.costs.shown_s(first=item.chunk == 0)
