"""A plan executed in virtual time: event by event, by the workers' own schedule and pacing, without sleeping.

Every worker takes in what has come, then runs the pass that others wait for most, as `runtime.worker` does; only work
and messages are durations. Any kind of number counts time (floats, or fractions where equality matters).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

from parallel.cost import Costs
from parallel.pacing import ENCODE, HOPS, Pacer
from parallel.plan import Plan
from parallel.schedule import Pass, Schedule, rows


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
        """From the beginning of a `final` pass to the chunk's first frame."""
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
        key = worker, item.kind, item.block, item.kind == "final" and item.chunk == 0
        if key not in self._known:
            self._known[key] = self._work(worker, item)
        return self._known[key] * self.factor(worker, item)

    def _work(self, worker: int, item: Pass) -> float:
        if item.kind == "final":
            return self.costs.decode_s(first=item.chunk == 0)
        return 0.0 if item.kind == "end" else self.costs.pass_s(item.kind, worker, item.block)

    def sample(self, stream: int, chunk: int) -> float:
        return self.costs.sample_s()

    def encode(self, stream: int, chunk: int) -> float:
        return self.costs.encode_s(first=chunk == 0)

    def handling(self, worker: int) -> float:
        return self.costs.handling_s(worker)

    def travel(self, source: int, target: int, item: Pass) -> tuple[float, float]:
        link = self.costs.cluster.link(self.costs.groups[source][0], self.costs.groups[target][0])
        return self._bytes(item) / link.bandwidth, link.latency_s

    def _bytes(self, item: Pass) -> float:
        w = self.plan.workload
        latents = w.latent_bytes if item.kind in ("step", "final", "commit") else 0
        hidden = w.hidden_bytes * (w.recache_chunks if item.kind == "recache" else 1)
        return latents + (hidden if item.block and item.kind != "end" else 0)

    def shown(self, item: Pass) -> float:
        return self.costs.shown_s(first=item.chunk == 0)


class Span(NamedTuple):
    """Work without a break, in units of the durations."""

    worker: int
    item: Pass
    start: float
    end: float


@dataclass
class Chunk:
    """The moments of one chunk: granted, sampled (its control is fixed), first frame, all of it out."""

    stream: int
    number: int
    granted: float
    sampled: float = 0.0
    shown: float = 0.0
    left: float = 0.0


@dataclass
class _Worker:
    schedule: Schedule
    inbox: deque[tuple[str, Pass]] = field(default_factory=deque)
    encodes: deque[Chunk] = field(default_factory=deque)
    """Chunks whose sampling waits for the device."""
    free_at: float = 0.0
    busy: bool = False


@dataclass
class _Lane:
    """A stream's sampler: one chunk at a time."""

    chunks: int | None
    live: Callable[[int], float] | None
    prompts: tuple[int, ...] = ()
    asked: deque[Chunk] = field(default_factory=deque)
    sampling: bool = False


class Simulator:
    """A plan's workers in virtual time.

    Args:
        plan: what runs where.
        durations: of everything.
        spans: whether to keep what every worker did.

    Attributes:
        now: the present moment.
        chunks: those that have left, in that order.
        spans: what was done, if kept, in the order of beginnings.
    """

    def __init__(self, plan: Plan, durations: Durations, spans: bool = False):
        self.plan, self.durations = plan, durations
        self.workers = [_Worker(Schedule(plan, w)) for w in range(plan.workers)]
        self.pacer, self.lanes = Pacer.of(plan), {}
        self.now: float = 0
        self.chunks: list[Chunk] = []
        self.spans: list[Span] = []
        self._keep = spans
        self._under_way: dict[tuple[int, int], Chunk] = {}
        self._times: dict[tuple[int, int], dict[int, float]] = {}
        """What each worker has spent on a chunk so far, as messages carry it."""
        self._links: dict[tuple[int, int], float] = {}
        """When each link is free."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._woken: set[int] = set()

    # -- what is asked of it ------------------------------------------------------------------------------------------

    def open(
        self,
        stream: int,
        at: float = 0,
        chunks: int | None = None,
        live: Callable[[int], float] | None = None,
        prompts: Iterable[int] = (),
    ) -> None:
        """A stream that begins at a moment.

        Args:
            chunks: how many; None: endless.
            live: chunk -> the moment before which its conditioning is not there; None: it waits for nothing.
            prompts: chunks with which a new prompt begins.
        """
        lane = _Lane(chunks, live, tuple(prompts))
        self._at(at, lambda: self._open(stream, lane))

    def run(self, over: Callable[[], bool]) -> None:
        """Go on until `over()` or nothing is left to do."""
        while self._events and not over():
            self.now = self._events[0][0]
            # Everything of one moment comes before anyone begins something new.
            while self._events and self._events[0][0] == self.now:
                heapq.heappop(self._events)[2]()
                while self._woken and not (self._events and self._events[0][0] == self.now):
                    woken, self._woken = sorted(self._woken), set()
                    for worker in woken:
                        self._go_on(worker)

    # -- streams ------------------------------------------------------------------------------------------------------

    def _open(self, stream: int, lane: _Lane) -> None:
        for worker in self.workers:
            worker.schedule.open(stream)
        self.lanes[stream] = lane
        self.pacer.open(stream, lane.live is not None)
        self._woken.add(self.plan.encode)

    def _may_enter(self, stream: int, chunk: int) -> bool:
        lane = self.lanes[stream]
        if lane.chunks is not None and chunk >= lane.chunks:
            return False
        return self.workers[self.plan.encode].schedule.may_enter(stream, chunk)

    def _ask(self) -> None:
        for stream, number, at in self.pacer.grants(self._may_enter, self.now):
            chunk = Chunk(stream, number, at)
            self._under_way[stream, number] = chunk
            self.lanes[stream].asked.append(chunk)
            self._sample(self.lanes[stream])

    def _sample(self, lane: _Lane) -> None:
        """Wait for the next chunk's conditioning, if nothing is waited for; then it wants the device."""
        if lane.sampling or not lane.asked:
            return
        lane.sampling = True
        chunk = lane.asked.popleft()
        there = max(self.now, chunk.granted)
        if lane.live is not None:
            there = max(there, lane.live(chunk.number))
        self._at(there, lambda: self._draw(chunk))

    def _draw(self, chunk: Chunk) -> None:
        """What drives the chunk is there: from here on nothing can change it."""
        chunk.sampled = self.now
        self._at(self.now + self.durations.sample(chunk.stream, chunk.number), lambda: self._want_device(chunk))

    def _want_device(self, chunk: Chunk) -> None:
        self.workers[self.plan.encode].encodes.append(chunk)
        self._woken.add(self.plan.encode)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _go_on(self, index: int) -> None:
        """What a worker does when something has come or it has become free."""
        worker = self.workers[index]
        if worker.busy:
            return
        if worker.encodes:
            self._encode(index, worker.encodes.popleft())
            return
        if worker.inbox:
            spent = self._take_in(index)
            if spent:
                self._keep_busy(index, spent, lambda: None)
                return
        if index == self.plan.encode:
            self._ask()
            if worker.encodes:
                self._go_on(index)
                return
        taken = worker.schedule.next()
        if taken is None:
            return
        item = taken[0]
        if item[0] == "step" and item[3:5] == (0, 0):
            worker.schedule.entered(item.stream, item.chunk)
            if index == self.plan.encode:
                self._ask()
        length, chunk = self.durations.work(index, item), self._under_way.get((item.stream, item.chunk))
        if self._keep:
            self.spans.append(Span(index, item, self.now, self.now + length))
        if item.kind == "final" and chunk:
            chunk.shown = self.now + self.durations.shown(item)
        if item.kind in ("step", "final"):
            spent = self._times.setdefault((item.stream, item.chunk), {})
            spent[index] = spent.get(index, 0) + length
        self._keep_busy(index, length, lambda: self._done(index, item))

    def _keep_busy(self, index: int, length: float, then: Callable[[], None]) -> None:
        worker = self.workers[index]
        worker.busy, worker.free_at = True, self.now + length

        def over() -> None:
            worker.busy = False
            self._woken.add(index)
            then()

        self._at(worker.free_at, over)

    def _encode(self, index: int, chunk: Chunk) -> None:
        """The sampler's thread has the device; what it makes comes to its own worker."""
        length = self.durations.encode(chunk.stream, chunk.number)
        drawn = self.durations.sample(chunk.stream, chunk.number)
        self._times[chunk.stream, chunk.number] = {ENCODE: drawn + length}

        def entered() -> None:
            lane = self.lanes[chunk.stream]
            lane.sampling = False
            self._sample(lane)
            self.workers[index].inbox.append(("entry", Pass("step", chunk.stream, chunk.number)))

        self._keep_busy(index, length, entered)

    def _take_in(self, index: int) -> float:
        """Move what has come to the schedule; returns what that takes."""
        worker, spent = self.workers[index], 0
        while worker.inbox:
            how, item = worker.inbox.popleft()
            if how == "entry":
                self.pacer.entered(item.stream)
                spent += self._enter(index, item)
            else:
                spent += self.durations.handling(index)
                if item.kind != "done":
                    self._deliver(index, item)
        return spent

    def _enter(self, index: int, item: Pass) -> float:
        """A sampled chunk goes on its way; returns what sending took."""
        spent, plan = 0, self.plan
        if item.chunk == 0 and any(v.source < 0 for v in plan.workload.versions):
            for target, prefill in rows(plan, Pass("prefill", item.stream, 0)):
                spent += self._send(index, target, prefill, spent)
        epoch = max((e for e in self.lanes[item.stream].prompts if e <= item.chunk), default=0)
        item = item._replace(epoch=epoch)
        if plan.workload.recache_chunks and 0 < item.chunk == epoch:
            for target, recache in rows(plan, item._replace(kind="recache")):
                spent += self._send(index, target, recache, spent)
        spent += self._send(index, plan.decode, Pass("sound", item.stream, item.chunk), spent)
        return spent + self._send(index, plan.head, item, spent)

    def _deliver(self, index: int, item: Pass) -> None:
        schedule = self.workers[index].schedule
        if item.kind == "sound":
            schedule.companion(item.stream, item.chunk)
        elif item.kind == "done":
            self.pacer.done(item.stream, item.chunk, self._times.pop((item.stream, item.chunk)), self.now)
        else:
            schedule.arrive(item)

    def _done(self, index: int, item: Pass) -> None:
        if item.kind == "final":
            chunk = self._under_way.pop((item.stream, item.chunk))
            chunk.left = self.now
            self.chunks.append(chunk)
        if index == self.plan.encode and self.workers[index].schedule.passes_last(item):
            self.pacer.rounded()
        spent = 0
        for target, following in self.workers[index].schedule.done(item):
            spent += self._send(index, target, following, spent)
        if spent:
            self._keep_busy(index, spent, lambda: None)

    def _send(self, source: int, target: int, item: Pass, after: float) -> float:
        """Send a message `after` from now on; returns what that costs the worker."""
        if source == target:
            self._deliver(target, item)
            return 0
        cost = self.durations.handling(source)
        busy, late = self.durations.travel(source, target, item)
        begins = max(self.now + after + cost, self._links.get((source, target), 0))
        self._links[source, target] = begins + busy
        if item.kind in ("step", "final", "done"):
            spent = self._times.setdefault((item.stream, item.chunk), {})
            spent[HOPS] = spent.get(HOPS, 0) + begins + busy + late - self.now - after

        def arrive() -> None:
            if item.kind == "done":
                # Heard of at once, whatever the worker is at.
                self._deliver(target, item)
                self._ask()
            self.workers[target].inbox.append(("message", item))
            self._woken.add(target)

        self._at(begins + busy + late, arrive)
        return cost

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))
