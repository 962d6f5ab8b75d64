"""What exact recovery costs a plan: bytes that cuts copy to the host and keep there, and seconds that a loss takes.

A cut copies what passes wrote since the one before: frames in every layer's bank at every level, as many as the history
rule says, and all that a decoder remembers. Beyond a ring of chunks it copies whole rings, and no more. What a cut that
is kept refers to is not overwritten: beside all that there is, what the last two intervals wrote is there twice,
and what is copied before the next cut (`runtime.early`). Numbers, no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from parallel.cost import Costs
from parallel.plan import Plan
from parallel.predict import Demand, Prediction

INTERVALS = 2
"""Between cuts that are kept: the newest whole one, and those that are under way."""
SHARE = 0.5
"""Of a device's way to its host that cuts may take: what else goes there is not to wait for them."""
MOST = 1 << 20
"""Chunks between two cuts, at most."""
CLOSE = 1e-9


@dataclass(frozen=True)
class Logged:
    """What cuts keep of one stream.

    Attributes:
        written: latent frames of a bank that one chunk, two, ... write; so many as the last says for more of them. The
            mean, where chunks differ.
        most: likewise, of chunks that write most.
        shared: bytes of a latent frame in a layer's banks at one level, by layer: what a worker's processes share.
        whole: likewise, of what each of them has whole.
        shared_rest, whole_rest: of everything in them, likewise: ring, attention sink, fixed tokens.
        every_shared, every_whole: of what in a layer's banks at one level every chunk writes beside frames (what a
            choice among tokens needs), likewise; `shared_rest` and `whole_rest` hold it, too.
        finished: of a chunk of which something is kept for later ones, and `kept` how many of them there are.
        decoder: that a decoder remembers.
        entered: that the journal keeps of a chunk's sound, prompt and actions.
    """

    written: tuple[float, ...]
    most: tuple[int, ...]
    shared: tuple[float, ...]
    whole: tuple[float, ...]
    shared_rest: tuple[float, ...]
    whole_rest: tuple[float, ...]
    every_shared: float = 0.0
    every_whole: float = 0.0
    finished: float = 0.0
    kept: int = 0
    decoder: float = 0.0
    entered: float = 0.0


class Cuts:
    """Bytes of one stream's cuts under a plan.

    Args:
        plan: what runs where.
        logged: what there is to keep.
        every: chunks between two cuts.
    """

    def __init__(self, plan: Plan, logged: Logged, every: int):
        self.plan, self.logged, self.every = plan, logged, every

    def dirty(self, worker: int) -> float:
        """Copied by one cut in each process of a worker, at most; what only its first has, too."""
        return self._copied(worker, self.logged.most)

    def mean(self, worker: int) -> float:
        """Likewise, in the mean of all cuts."""
        return self._copied(worker, self.logged.written)

    def _copied(self, worker: int, frames: tuple[float, ...]) -> float:
        one, written = self.logged, frames[min(self.every, len(frames)) - 1]
        shared, whole = (
            tuple(written * size + every for size in sizes)
            for sizes, every in ((one.shared, one.every_shared), (one.whole, one.every_whole))
        )
        return self._banks(worker, shared, whole, min(self.every, one.kept)) + self._decoder(worker)

    def rest(self, worker: int) -> float:
        """All that a cut refers to in each process of a worker; what only its first has, too."""
        one = self.logged
        return self._banks(worker, one.shared_rest, one.whole_rest, one.kept) + self._decoder(worker)

    def early(self, worker: int) -> float:
        """Copied before the next cut in each process of a worker: where the ring turns between two, what a chunk
        overwrites and the one before it does not."""
        one, chunk, ring = self.logged, self.logged.most[0], self.logged.most[-1]
        turns = self.every >= len(one.most)
        return turns * max(0, min(chunk, ring - chunk)) * self._banks(worker, one.shared, one.whole, 0)

    def memory(self, worker: int) -> float:
        """Kept on the host for all processes of a worker, with the journal where chunks are sampled."""
        others = len(self.plan.group(worker)) - 1
        one = self.rest(worker) + INTERVALS * self.dirty(worker) + self.early(worker)
        once = (INTERVALS + 1) * self._decoder(worker)
        journal = (INTERVALS + 1) * self.every * self.logged.entered * (worker == self.plan.encode)
        return one + others * (one - once) + journal

    def _banks(self, worker: int, shared: tuple[float, ...], whole: tuple[float, ...], finished: int) -> float:
        """Of each process that shares a worker's passes; finished chunks are with the first block's banks."""
        plan, found = self.plan, 0.0
        for block in plan.blocks_of(worker):
            if not (levels := self._levels(worker, block)):
                continue
            layers = plan.blocks[block]
            found += levels * sum(shared[i] / plan.degree + whole[i] for i in layers)
            found += finished * self.logged.finished * (layers.start == 0)
        return found

    def _levels(self, worker: int, block: int) -> int:
        """Banks of a block that a worker copies: of those that several have, whoever runs the level's first step."""
        level = self.plan.workload.rule.level
        return sum(level(step) == step for step in self.plan.steps_of(worker, block))

    def _decoder(self, worker: int) -> float:
        """What a worker's first process has beside banks."""
        return self.logged.decoder * (self.plan.workload.decodes and worker == self.plan.decode)


@dataclass(frozen=True)
class Needs:
    """What exact recovery takes of a cluster, for all streams.

    Attributes:
        wanted: chunks between two cuts, as `launcher.recover_s` asks for.
        every: as devices' ways to their hosts allow.
        rates: bytes per second from each worker's first device.
        bandwidths: that it has for that, by worker; infinite: not known.
        dirty: bytes of one cut of one stream at most, by worker.
        memory: bytes on each machine that has workers, by its number.
        work_s: that the slowest stage spends meanwhile on all streams.
        replay_s: that streams take at most to come back to where they were.
    """

    wanted: int
    every: int
    rates: tuple[float, ...]
    bandwidths: tuple[float, ...]
    dirty: tuple[float, ...]
    memory: dict[int, float]
    work_s: float
    replay_s: float

    @property
    def allowed(self) -> bool:
        """Whether devices' ways to their hosts allow what was asked for."""
        return self.every == self.wanted


def chunks(recover_s: float, period_s: float) -> int:
    """Chunks between two cuts of a stream, of which one is made every `period_s`, that are `recover_s` of work."""
    return max(1, min(MOST, int(recover_s / period_s + CLOSE))) if period_s > 0 else MOST


def needs(costs: Costs, logged: Logged, demand: Demand, prediction: Prediction, recover_s: float) -> Needs:
    """What exact recovery takes of a plan on a cluster.

    Args:
        logged: what cuts keep of a stream.
        demand: how many streams there are, and whether they go at the pace of life.
        prediction: of the plan there.
        recover_s: as `launcher.recover_s`.
    """
    plan, cluster, streams = costs.plan, costs.cluster, demand.streams
    # From one chunk of a stream to the next: where all want as much as they can get, and as they go.
    period = streams * prediction.period_s
    gap = max(period, demand.frames / demand.fps if demand.paced else 0.0)
    workers = range(plan.workers)
    ways = tuple(cluster.devices[costs.groups[worker][0]].sheet.host_bandwidth or inf for worker in workers)

    def rates(every: int) -> tuple[float, ...]:
        """Of every worker's device, with what others on it copy."""
        own = [streams * Cuts(plan, logged, every).mean(worker) / (every * gap) for worker in workers]
        devices = [costs.groups[worker][0] for worker in workers]
        return tuple(sum(r for r, d in zip(own, devices, strict=True) if d == device) for device in devices)

    def fits(every: int) -> bool:
        return all(rate <= SHARE * way * (1 + CLOSE) for rate, way in zip(rates(every), ways, strict=True))

    wanted = chunks(recover_s, period)
    every = _least(wanted, fits)
    cuts = Cuts(plan, logged, every)
    memory: dict[int, float] = {}
    for worker in workers:
        node = cluster.devices[costs.groups[worker][0]].node
        memory[node] = memory.get(node, 0.0) + streams * cuts.memory(worker)
    dirty = tuple(cuts.dirty(worker) for worker in workers)
    replay = every * period + prediction.chunk_latency_s
    return Needs(wanted, every, rates(every), ways, dirty, memory, every * period, replay)


def _least(start: int, fits: Callable[[int], bool]) -> int:
    """The least number from `start` on that fits, where all beyond one that fits do; MOST where none does."""
    low, high = start, start
    while not fits(high) and high < MOST:
        low, high = high + 1, min(MOST, 2 * high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high
