"""What a plan's work takes on a cluster: seconds of every pass, stage, message and collective. Sums, no scheduling.

One source of durations for the search (as matrices over layer ranges), for predictions and for the simulator.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np

from conf.schema.cluster import StageTimes
from parallel.cluster import Cluster
from parallel.partition import prefix_ranges
from parallel.passes import ROUTE, Pass
from parallel.plan import Cell, Plan, Stage, Workload

EXCHANGES = 2
"""All-to-alls of a layer under sequence parallelism: q, k and v in one, and the result."""
EXCHANGED = 4
"""Tensors of the size of hidden states in them."""


class Ranges:
    """Seconds of one pass over any range of layers, on any devices: `of(...)[lo, hi]`. Knows no plan.

    Args:
        workload: what is spread.
        cluster: devices, links and times.
    """

    def __init__(self, workload: Workload, cluster: Cluster):
        self.workload, self.cluster = workload, cluster
        self._known: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def of(self, kind: str, group: tuple[int, ...]) -> np.ndarray:
        """A pass (of any kind that has layers) shared by the devices of a group, which is as fast as its slowest. One
        that is in the group twice does two parts."""
        key = kind, group
        if key not in self._known:
            own = np.maximum.reduce([self._on(d, kind, len(group)) * group.count(d) for d in group])
            self._known[key] = own + self._exchanged(kind, group)
        return self._known[key]

    def once(self, group: tuple[int, ...]) -> np.ndarray:
        """What a chunk's first pass over a bank takes on top, likewise."""
        key = "once", group
        if key not in self._known:
            self._known[key] = np.maximum.reduce([self._once_on(d, len(group)) * group.count(d) for d in group])
        return self._known[key]

    def _once_on(self, device: int, degree: int) -> np.ndarray:
        """A device's own part: products of single tokens, of which each device has an equal part."""
        found, count = self.cluster.devices[device], self.workload.layers
        measured = self.cluster.times.get((found.kind, degree))
        times = measured or self.cluster.times[found.kind, 1]
        layers = np.array(times.layers(count))
        spread = layers / layers.sum() if layers.sum() else np.full(count, 1 / count)
        return prefix_ranges(spread * times.once_s / (1 if measured else degree)) / found.speed

    def _on(self, device: int, kind: str, degree: int) -> np.ndarray:
        """A device's own part."""
        found, count = self.cluster.devices[device], self.workload.layers
        times = self.cluster.times.get((found.kind, degree)) or self.cluster.times[found.kind, 1]
        # Times of this degree were measured with all that it costs; others are divided.
        share = 1.0 if times.degree == degree else times.serial + (1 - times.serial) / degree
        layers = np.array(times.layers(count))
        declared = self.workload.passes[kind]
        whole = {"commit": times.commit_s, "prefill": times.prefill_s}.get(declared.timed)
        if whole is not None:
            # Spread over the layers as a step is.
            layers = layers * (whole / layers.sum()) if layers.sum() else np.full(count, whole / count)
        layers = layers * declared.chunks(self.workload)
        matrix = prefix_ranges(layers * share) + times.pass_s
        matrix[0, :] += times.first_s
        matrix[:, count] += times.last_s
        return matrix / found.speed

    def _exchanged(self, kind: str, group: tuple[int, ...]) -> np.ndarray:
        """Collectives, where times of this degree were not measured.

        Ulysses: every process holds hidden / P and sends (P - 1) / P of it, for q, k, v and the result; the results
        of a range are gathered by one of them. Source: DeepSpeed-Ulysses, arXiv 2309.14509, section 3.2.
        """
        degree, count = len(group), self.workload.layers
        measured = all((self.cluster.devices[d].kind, degree) in self.cluster.times for d in group)
        if degree == 1 or measured:
            return np.zeros((count + 1, count + 1))
        # Only steps go over all chunks that are denoised together.
        together = 1 if self.workload.passes[kind].path == ROUTE else self.workload.ahead + 1
        link, hidden = self.cluster.within(group), self.workload.hidden_bytes / together
        leaves = hidden / degree * (degree - 1) / degree
        layer = EXCHANGES * link.latency_s + EXCHANGED * leaves / link.bandwidth
        return prefix_ranges([layer] * count) + link.seconds(hidden * (degree - 1) / degree)


class Costs:
    """Durations of a plan on a cluster.

    Args:
        plan: what runs where.
        cluster: devices, links and times.
        placement: the device of every process; None: process i on device i.
        ranges: of the same workload and cluster, to share what was computed.
    """

    def __init__(
        self, plan: Plan, cluster: Cluster, placement: tuple[int, ...] | None = None, ranges: Ranges | None = None
    ):
        self.plan, self.cluster = plan, cluster
        self.groups = groups(plan, placement)
        """Devices of every worker."""
        self._ranges = ranges or Ranges(plan.workload, cluster)

    # -- passes -------------------------------------------------------------------------------------------------------

    def pass_s(self, kind: str, worker: int, block: int) -> float:
        """One pass over a block, on one level."""
        layers = self.plan.blocks[block]
        return float(self.ranges(kind, worker)[layers.start, layers.stop])

    def cell_s(self, cell: Cell) -> float:
        """A step over a block, in a chunk's way through the route."""
        owner, layers = self.plan.owner(cell), self.plan.blocks[cell.block]
        once = float(self._ranges.once(self.groups[owner])[layers.start, layers.stop]) * (cell in self.plan.beginning)
        return self.pass_s("step", owner, cell.block) + once

    def ranges(self, kind: str, worker: int) -> np.ndarray:
        """One pass over any range of layers on a worker's devices, as [lo, hi]."""
        return self._ranges.of(kind, self.groups[worker])

    def way_s(self, block: int) -> np.ndarray:
        """All steps of a chunk over a block, likewise."""
        plan, owners = self.plan, [row[block] for row in self.plan.owners]
        total = sum(self.ranges("step", owner) for owner in owners)
        begin = (owner for step, owner in enumerate(owners) if Cell(step, block) in plan.beginning)
        return total + sum(self._ranges.once(self.groups[owner]) for owner in begin)

    # -- stages -------------------------------------------------------------------------------------------------------

    def sample_s(self) -> float:
        """Drawing a chunk's noise: on its way, but beside what the encode worker's device does."""
        return self._scaled(self.plan.encode, self.times_of(self.plan.encode).sample_s)

    def encode_s(self, first: bool = False) -> float:
        """Sampling and encoding a chunk's conditioning; `first`: chunk 0, with text and reference."""
        t = self.times_of(self.plan.encode)
        return self._scaled(self.plan.encode, t.encode_s if not first or t.first_encode_s is None else t.first_encode_s)

    def stage_s(self, name: str, first: bool = False) -> float:
        """One of the last stages (`decode`, `post`, `output`), for a chunk; 0 where there is none. Without pictures
        output takes nothing."""
        stage = self._stages.get(name)
        if stage is None or not self.plan.workload.decodes:
            return 0.0
        t = self.times_of(stage.worker)
        decode = t.decode_s if not first or t.first_decode_s is None else t.first_decode_s
        return self._scaled(stage.worker, {"decode": decode, "post": t.post_s, "output": t.output_s}[name])

    def decode_s(self, first: bool = False) -> float:
        """Decoding a chunk; 0 where no pictures are made."""
        return self.stage_s("decode", first)

    def output_s(self) -> float:
        """A chunk's output, beside what its worker's device does."""
        return self.stage_s("output")

    def shared_s(self, first: bool = False) -> float:
        """The last stages that streams share (all but output), and what is between them."""
        stages, size = self.plan.stages, self.plan.workload.picture_bytes
        hops = sum(self.hop_s(a.worker, b.worker, size) for a, b in pairwise(stages))
        return sum(self.stage_s(stage.name, first) for stage in stages[:-1]) + hops

    def shown_s(self, first: bool = False) -> float:
        """From final latents at the first of the last stages to the chunk's first frame being out."""
        shown = self.times_of(self.plan.decode).shown_s
        decode = self.decode_s(first)
        sooner = decode if shown is None else min(decode, self._scaled(self.plan.decode, shown))
        return self.shared_s(first) + self.output_s() - decode + sooner

    @cached_property
    def _stages(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.plan.stages}

    def times_of(self, worker: int) -> StageTimes:
        """Of a worker's first device, where its stages run."""
        return self.cluster.times[self.cluster.devices[self.groups[worker][0]].kind, 1]

    def _scaled(self, worker: int, seconds: float) -> float:
        return seconds / self.cluster.devices[self.groups[worker][0]].speed

    # -- messages -----------------------------------------------------------------------------------------------------

    def hop_s(self, source: int, target: int, size: float) -> float:
        """From one worker handing a message over to the other having it."""
        if source == target:
            return 0.0
        link = self.cluster.link(self.groups[source][0], self.groups[target][0])
        return self.handling_s(source) + link.seconds(size) + self.handling_s(target)

    def handling_s(self, worker: int) -> float:
        """What a worker itself spends on a message it sends or receives."""
        return self._scaled(worker, self.times_of(worker).hop_s)

    @cached_property
    def traffic(self) -> tuple[tuple[int, int, float], ...]:
        """(source, target, bytes) of every message of one chunk in steady running, between different workers."""
        plan, w = self.plan, self.plan.workload
        found: list[tuple[int, int, float]] = [(plan.encode, plan.head, w.latent_bytes)]
        for cell in plan.route_of(1):
            following = plan.after(cell)
            if following is None:
                found.append((plan.owner(cell), plan.stages[0].worker, w.final_bytes))
            else:
                size = w.latent_bytes + (w.hidden_bytes if following.block else 0)
                found.append((plan.owner(cell), plan.owner(following), size))
        for kind in w.every_chunk:
            first, beyond = (kind.cargo(w, Pass(kind.name, 0, 0, block=block)) for block in (0, 1))
            for row in plan.rows:
                found.append((plan.tail, row[0], first))
                found += [(a, b, beyond) for a, b in pairwise(row)]
        found += [(a.worker, b.worker, w.picture_bytes) for a, b in pairwise(plan.stages)]
        found += [(plan.encode, worker, 0) for worker in plan.stage_workers]
        found += [(worker, plan.encode, 0) for worker in (plan.leaves, plan.stages[-1].worker)]
        return tuple(m for m in found if m[0] != m[1])

    # -- sums ---------------------------------------------------------------------------------------------------------

    def fixed_s(self, worker: int) -> float:
        """What a worker spends on one chunk however many layers it has: stages on its device, and messages."""
        handled = sum((m[0] == worker) + (m[1] == worker) for m in self.traffic)
        return self.stages_s(worker) + self.handling_s(worker) * handled

    def stages_s(self, worker: int) -> float:
        """What the stages of a worker keep its first device busy for one chunk."""
        stages = sum(self.stage_s(stage.name) for stage in self.plan.stages[:-1] if stage.worker == worker)
        return self.encode_s() * (worker == self.plan.encode) + stages

    def passes_s(self, worker: int) -> float:
        """What the passes of one chunk keep a worker's devices busy."""
        held = ((self.plan.blocks[b], b) for b in self.plan.blocks_of(worker))
        return sum(float(self.layers_s(worker, b)[layers.start, layers.stop]) for layers, b in held)

    def layers_s(self, worker: int, block: int) -> np.ndarray:
        """What a worker spends on the passes of one chunk over a block, for any range of layers it might be."""
        plan = self.plan
        steps = sum(row[block] == worker for row in plan.lasting)
        levels = len(plan.levels_of(worker, block))
        total = steps * self.ranges("step", worker) + levels * self._ranges.once(self.groups[worker])
        for kind in plan.workload.every_chunk:
            total = total + levels * self.ranges(kind.name, worker)
        return total

    def load(self) -> list[float]:
        """Seconds each worker spends on one chunk in steady running."""
        return [self.fixed_s(worker) + self.passes_s(worker) for worker in range(self.plan.workers)]

    @cached_property
    def shared(self) -> dict[int, tuple[int, ...]]:
        """Devices that several workers are on, with these workers."""
        held: dict[int, tuple[int, ...]] = {}
        for worker, group in enumerate(self.groups):
            for device in dict.fromkeys(group):
                held[device] = (*held.get(device, ()), worker)
        return {device: workers for device, workers in sorted(held.items()) if len(workers) > 1}

    def device_s(self, device: int, without: int | None = None) -> float:
        """Seconds one chunk keeps a device busy, whose workers take turns. Messages are handled beside it.

        Args:
            without: a worker that is not counted.
        """
        there = [worker for worker, group in enumerate(self.groups) if device in group and worker != without]
        return sum(self.passes_s(w) + self.stages_s(w) * (self.groups[w][0] == device) for w in there)

    def beside_s(self, worker: int) -> float:
        """Seconds one chunk keeps the busiest of a worker's devices busy for other workers."""
        shared = (device for device in self.groups[worker] if device in self.shared)
        return max((self.device_s(device, worker) for device in shared), default=0.0)

    def wire(self) -> dict[tuple[int, int], float]:
        """Seconds each channel carries bytes of one chunk."""
        found: dict[tuple[int, int], float] = {}
        for source, target, size in self.traffic:
            link = self.cluster.link(self.groups[source][0], self.groups[target][0])
            found[source, target] = found.get((source, target), 0.0) + size / link.bandwidth
        return found


def groups(plan: Plan, placement: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], ...]:
    """Devices of every worker: those of its processes."""
    held = [plan.group(worker) for worker in range(plan.workers)]
    return tuple(group if placement is None else tuple(placement[p] for p in group) for group in held)
