"""A plan executed in virtual time: event by event, by the workers' own schedule and pacing, without sleeping.

Every worker takes in what has come, then runs the pass that others wait for most, as `runtime.worker` does; only work
and messages are durations. A stage beside cells has its worker's device in turn with them, and goes first; output is
beside the device, in order for each stream. Workers that share a device take turns, too, pass by pass, and who has
waited longest is next. Any kind of number counts time (floats, or fractions where equality
matters).
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from parallel.durations import Durations
from parallel.pacing import ENCODE, HOPS, Pacer
from parallel.passes import LEFT, OUT, Pass, entering
from parallel.plan import Plan
from parallel.schedule import Schedule


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
    inbox: deque[tuple[str, Pass, int | None]] = field(default_factory=deque)
    """What has come: an `entry`, a `message` from a worker, or `finished` output."""
    stages: dict[int, deque[Pass]] = field(default_factory=dict)
    """What the last stages on this device are to do, by step."""
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
        devices: of every worker; None: each has its own.

    Attributes:
        now: the present moment.
        chunks: those that have left, in that order.
        spans: what was done, if kept, in the order of beginnings; output is beside its worker's device.
        most_held: messages on each channel that had not been taken in, at most; what a credit is needed for.
    """

    def __init__(
        self, plan: Plan, durations: Durations, spans: bool = False, devices: Sequence[Sequence[int]] | None = None
    ):
        self.plan, self.durations = plan, durations
        self.devices = [(worker,) for worker in range(plan.workers)] if devices is None else devices
        self.workers = [_Worker(Schedule(plan, w)) for w in range(plan.workers)]
        self.pacer, self.lanes = Pacer.of(plan), {}
        self.now: float = 0
        self.chunks: list[Chunk] = []
        self.spans: list[Span] = []
        self._keep = spans
        self._under_way: dict[tuple[int, int], Chunk] = {}
        self._times: dict[tuple[int, int], dict[int, float]] = {}
        """What each worker has spent on a chunk so far, as messages carry it; until it has left the shared stages."""
        self._output_s: dict[tuple[int, int], float] = {}
        """What output spent on a chunk, until that is told."""
        self._output_free: dict[int, float] = {}
        """When each stream's output is free."""
        self._held: Counter[tuple[int, int]] = Counter()
        self.most_held: dict[tuple[int, int], int] = defaultdict(int)
        self._links: dict[tuple[int, int], float] = {}
        """When each link is free."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._taken: set[int] = set()
        """Devices that are computing."""
        self._waiting: dict[int, float] = {}
        """Since when workers have waited for a device."""
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
            chunks: how many, then the stream ends; None: endless.
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
                    woken, self._woken = sorted(self._woken, key=self._turn), set()
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
        if lane.chunks is not None and chunk.number >= lane.chunks:
            self._at(there, lambda: self._enter_end(chunk))
            return
        if lane.live is not None:
            there = max(there, lane.live(chunk.number))
        self._at(there, lambda: self._draw(chunk))

    def _enter_end(self, chunk: Chunk) -> None:
        """The stream's source has no such chunk."""
        del self._under_way[chunk.stream, chunk.number]
        self.workers[self.plan.encode].inbox.append(("entry", Pass("end", chunk.stream, chunk.number), None))
        self._woken.add(self.plan.encode)

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
        if worker.encodes and self._may_compute(index):
            self._encode(index, worker.encodes.popleft())
            return
        if worker.inbox:
            spent = self._take_in(index)
            if spent:
                self._keep_busy(index, spent, lambda: None)
                return
        if index == self.plan.encode:
            self._ask()
            if worker.encodes and self._may_compute(index):
                self._go_on(index)
                return
        self._hand_over(index)
        item = self._next(worker) if self._may_compute(index) else None
        if item is None:
            return
        if worker.schedule.begins(item):
            worker.schedule.entered(item.stream, item.chunk)
            if index == self.plan.encode:
                self._ask()
        length = self.durations.work(index, item)
        self._began(index, item, length)
        if self.plan.workload.passes[item.kind].carries_chunk:
            spent = self._times.setdefault((item.stream, item.chunk), {})
            spent[index] = spent.get(index, 0) + length
        self._compute(index, length, lambda: self._done(index, item))

    @staticmethod
    def _next(worker: _Worker) -> Pass | None:
        """What has the device next: a stage before cells, and of stages the last."""
        for step in sorted(worker.stages, reverse=True):
            if worker.stages[step]:
                return worker.stages[step].popleft()
        taken = worker.schedule.next()
        return taken and taken[0]

    def _began(self, index: int, item: Pass, length: float) -> None:
        if self._keep:
            self.spans.append(Span(index, item, self.now, self.now + length))
        first = item.kind == "stage" and item.step == self.plan.workload.steps
        if first and (chunk := self._under_way.get((item.stream, item.chunk))):
            chunk.shown = self.now + self.durations.shown(item)

    def _hand_over(self, index: int) -> None:
        """Give the last stages what is ready for them. Output has a thread for every stream."""
        worker, output = self.workers[index], self.plan.workload.steps + len(self.plan.stages) - 1
        for item, _ in worker.schedule.staged():
            if item.step == output:
                self._output(index, item)
            else:
                worker.stages.setdefault(item.step, deque()).append(item)

    def _output(self, index: int, item: Pass) -> None:
        begins = max(self.now, self._output_free.get(item.stream, self.now))
        length = self.durations.work(index, item)
        self._output_free[item.stream] = begins + length

        def over() -> None:
            if item.kind == "stage":
                chunk = self._under_way.pop((item.stream, item.chunk))
                chunk.left = self.now
                self.chunks.append(chunk)
                self._output_s[item.stream, item.chunk] = length
            self.workers[index].inbox.append(("finished", item, None))
            self._woken.add(index)

        self._at(begins, lambda: self._began(index, item, length))
        self._at(begins + length, over)

    def _turn(self, index: int) -> tuple:
        """The order in which workers go on that may at one moment: those that wait for a device, the longest first."""
        return index not in self._waiting, self._waiting.get(index, 0), index

    def _may_compute(self, index: int) -> bool:
        """Whether a worker's devices are free; if they are not, it is woken when they may be."""
        if self._taken.isdisjoint(self.devices[index]):
            self._waiting.pop(index, None)
            return True
        self._waiting.setdefault(index, self.now)
        return False

    def _compute(self, index: int, length: float, then: Callable[[], None]) -> None:
        """Keep a worker and its devices busy."""
        self._taken.update(self.devices[index])

        def over() -> None:
            self._taken.difference_update(self.devices[index])
            self._woken.update(self._waiting)
            then()

        self._keep_busy(index, length, over)

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
            self.workers[index].inbox.append(("entry", Pass("step", chunk.stream, chunk.number), None))

        self._compute(index, length, entered)

    def _take_in(self, index: int) -> float:
        """Move what has come to the schedule; returns what that takes."""
        worker, spent = self.workers[index], 0
        while worker.inbox:
            how, item, source = worker.inbox.popleft()
            if how == "entry":
                spent += self._enter(index, item)
            elif how == "finished":
                spent += self._follow(index, item, spent)
            else:
                self._held[source, index] -= 1
                spent += self.durations.handling(index)
                if item.kind != "done":
                    self._deliver(index, item)
        self._hand_over(index)
        return spent

    def _enter(self, index: int, item: Pass) -> float:
        """A sampled chunk goes on its way, or its stream's end; returns what sending took."""
        stream = item.stream
        if item.kind == "end":
            self.pacer.end(stream)
            item = item._replace(step=self.plan.workload.first_step(item.chunk))
            spent = self._send(index, self.plan.head, item, 0)
            self._look_at_head(stream)
            return spent
        self.pacer.entered(stream)
        epoch, spent = max((e for e in self.lanes[stream].prompts if e <= item.chunk), default=0), 0
        for target, entered in entering(self.plan, stream, item.chunk, epoch):
            spent += self._send(index, target, entered, spent)
        return spent

    def _deliver(self, index: int, item: Pass) -> None:
        schedule = self.workers[index].schedule
        if item.kind == "done":
            self._told(item)
        elif item.stream in schedule.streams:
            if item.kind == "sidecar":
                schedule.sidecar(item.stream, item.chunk)
            else:
                schedule.arrive(item)

    def _told(self, item: Pass) -> None:
        """The head hears where a chunk is."""
        key = item.stream, item.chunk
        if item.step == LEFT:
            self.pacer.done(*key, self._times.pop(key), self.now)
        elif item.step == OUT:
            self.pacer.out(*key, self._output_s.pop(key), self.now)
        self._look_at_head(item.stream)

    def _look_at_head(self, stream: int) -> None:
        if self.pacer.over(stream):
            self.workers[self.plan.encode].schedule.close(stream, "head")

    def _done(self, index: int, item: Pass) -> None:
        if index == self.plan.encode and self.workers[index].schedule.passes_last(item):
            self.pacer.passed()
        spent = self._follow(index, item, 0)
        self._hand_over(index)
        if spent:
            self._keep_busy(index, spent, lambda: None)

    def _follow(self, index: int, item: Pass, after: float) -> float:
        """Send what follows from a pass, `after` from now on; returns what that takes."""
        spent = 0
        for target, following in self.workers[index].schedule.done(item):
            spent += self._send(index, target, following, after + spent)
        return spent

    def _send(self, source: int, target: int, item: Pass, after: float) -> float:
        """Send a message `after` from now on; returns what that costs the worker."""
        if source == target:
            self._deliver(target, item)
            return 0
        cost = self.durations.handling(source)
        busy, late = self.durations.travel(source, target, item)
        begins = max(self.now + after + cost, self._links.get((source, target), 0))
        self._links[source, target] = begins + busy
        self._count_hop(item, begins + busy + late - self.now - after)
        self._held[source, target] += 1
        self.most_held[source, target] = max(self.most_held[source, target], self._held[source, target])

        def arrive() -> None:
            if item.kind == "done":
                # Heard of at once, whatever the worker is at.
                self._deliver(target, item)
                self._ask()
            self.workers[target].inbox.append(("message", item, source))
            self._woken.add(target)

        self._at(begins + busy + late, arrive)
        return cost

    def _count_hop(self, item: Pass, seconds: float) -> None:
        """A chunk's message is part of its way."""
        key, w = (item.stream, item.chunk), self.plan.workload
        if item.kind == "done" and item.step == OUT:
            self._output_s[key] += seconds
            return
        output = w.steps + len(self.plan.stages) - 1
        shared = item.step < output and item.kind in w.passes and w.passes[item.kind].carries_chunk
        if shared or item.kind == "done":
            self._times[key][HOPS] = self._times[key].get(HOPS, 0) + seconds

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))
