"""A plan before it runs: which worker computes which chunk when, by the workers' own rules and without them.

Time is exact (fractions) and counted in *periods*: the time of the slowest worker per chunk. A cell takes its share
of the layers; every pass that writes an attention sink or a clean context counts as a whole step, which is the most
it can take; what travels arrives at once. A decoder with a worker of its own takes one period, as `Plan.in_flight`
presumes; one that shares a worker takes no time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from parallel.plan import Cell, Plan, Version

IDLE, SINK, COMMIT = ".", "s", "c"
"""Marks of a drawing: nothing to do, a pass that makes an attention sink, the clean pass of a finished chunk."""
MOST_SLOTS = 8
"""Parts of a period that a drawing tells apart, at most."""


class Span(NamedTuple):
    """Work without a break.

    Attributes:
        worker: who.
        what: `step`, `sink`, `commit` or `decode`.
        chunk: of a step, commit or decode; of a sink the chunk from which it holds.
        start, end: in periods.
    """

    worker: int
    what: str
    chunk: int
    start: Fraction
    end: Fraction


class _Task(NamedTuple):
    """A span that waits for its turn. Tuples of one kind sort by urgency, as in a worker."""

    urgency: tuple
    worker: int
    what: str
    chunk: int
    cell: Cell
    """The step of a route cell; of a row pass the row. The block of either."""
    level: int
    length: Fraction


@dataclass
class _Bank:
    """How far one bank is: the last chunk all of whose steps here are done, and passes written outside the route."""

    chunk: int = -1
    written: Counter = field(default_factory=Counter)


class _Simulation:
    """List scheduling: whoever is free takes the most urgent of what is ready."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.step = 1 / period_steps(plan)
        """Periods one step over all layers takes."""
        self.decode_alone = not plan.blocks_of(plan.decode)
        self.spans: list[Span] = []
        self.tasks: list[_Task] = []
        self.running: dict[int, tuple[Fraction, _Task]] = {}
        self.banks: dict[tuple[int, int, int], _Bank] = {}
        self.entered = self.done = 0
        self.began: dict[int, Fraction] = {}
        """When each chunk began its first step."""
        for version in plan.workload.versions:
            if version.source < 0:
                self._write("sink", version)

    def run(self, over: Callable[[Fraction], bool]) -> list[Span]:
        """Go on until `over(now)`."""
        now = Fraction(0)
        while not over(now):
            self._enter()
            self._start(now)
            now = min(end for end, _ in self.running.values())
            for worker, (end, task) in list(self.running.items()):
                if end == now:
                    del self.running[worker]
                    self._finished(task)
        return self.spans

    def _enter(self) -> None:
        """The head lets chunks in while there is room."""
        while self.entered < self.done + self.plan.in_flight:
            self._queue(self.entered, Cell(0, 0))
            self.entered += 1

    def _start(self, now: Fraction) -> None:
        for worker in range(self.plan.workers):
            ready = [t for t in self.tasks if t.worker == worker and self._ready(t)]
            if worker not in self.running and ready:
                task = min(ready)
                self.tasks.remove(task)
                self.running[worker] = now + task.length, task
                if task.what == "step":
                    self.began.setdefault(task.chunk, now)
                self.spans.append(Span(worker, task.what, task.chunk, now, now + task.length))

    # -- what is to be done -------------------------------------------------------------------------------------

    def _share(self, block: int) -> Fraction:
        return self.step * Fraction(len(self.plan.blocks[block]), self.plan.workload.layers)

    def _queue(self, chunk: int, cell: Cell) -> None:
        level = cell.step if self.plan.workload.context == "same_level" else 0
        urgency = (1, chunk, -cell.step, -cell.block)
        owner, length = self.plan.owner(cell), self._share(cell.block)
        self.tasks.append(_Task(urgency, owner, "step", chunk, cell, level, length))

    def _write(self, what: str, version: Version) -> None:
        """A pass along every row; `what` is the kind of span."""
        for row in range(len(self.plan.rows)):
            self._row_pass(what, version.source if what == "commit" else version.holds, row, 0)

    def _row_pass(self, what: str, chunk: int, row: int, block: int) -> None:
        worker = self.plan.rows[row][block]
        for level in self.plan.levels_of(worker, block):
            task = _Task((0, chunk, -row, -block), worker, what, chunk, Cell(row, block), level, self._share(block))
            self.tasks.append(task)

    def _bank(self, task: _Task) -> _Bank:
        return self.banks.setdefault((task.worker, task.cell.block, task.level), _Bank())

    def _due(self, chunk: int) -> int:
        """Passes that hold from `chunk` exactly."""
        w = self.plan.workload
        return sum(v.holds == chunk for v in w.versions) + (w.commits_every_chunk and chunk > 0)

    def _ready(self, task: _Task) -> bool:
        """Same-bank order: chunk 0, what was made of it, chunk 1, ..."""
        if task.what == "decode":
            return task.chunk == self.done
        bank = self._bank(task)
        if task.what == "step":
            return bank.chunk == task.chunk - 1 and bank.written[task.chunk] == self._due(task.chunk)
        return bank.chunk == self._holds(task) - 1

    @staticmethod
    def _holds(task: _Task) -> int:
        return task.chunk + 1 if task.what == "commit" else task.chunk

    # -- what follows ---------------------------------------------------------------------------------------------

    def _finished(self, task: _Task) -> None:
        if task.what == "decode":
            self.done += 1
            return
        bank = self._bank(task)
        if task.what != "step":
            bank.written[self._holds(task)] += 1
            row, block = task.cell
            first = self.plan.levels_of(task.worker, block)[0]
            if task.level == first and block + 1 < len(self.plan.blocks):
                self._row_pass(task.what, task.chunk, row, block + 1)
            return
        steps = self.plan.steps_of(task.worker, task.cell.block)
        if self.plan.workload.context == "same_level" or task.cell.step == steps[-1]:
            bank.chunk = task.chunk
        following = self.plan.after(task.cell)
        if following is not None:
            self._queue(task.chunk, following)
        else:
            self._final(task.chunk)

    def _final(self, chunk: int) -> None:
        for version in self.plan.workload.versions:
            if version.source == chunk:
                self._write("sink", version)
        if self.plan.workload.commits_every_chunk:
            self._write("commit", Version(chunk, chunk + 1))
        if self.decode_alone:
            cell = Cell(self.plan.workload.steps, 0)
            task = _Task((-1, chunk), self.plan.decode, "decode", chunk, cell, 0, Fraction(1))
            self.tasks.append(task)
        else:
            self.done += 1


def period_steps(plan: Plan) -> Fraction:
    """A period in steps of the whole network."""
    total = [Fraction(0)] * plan.workers
    passes = [*plan.owners, *(plan.rows if plan.workload.commits_every_chunk else ())]
    for row in passes:
        for block, worker in enumerate(row):
            total[worker] += Fraction(len(plan.blocks[block]), plan.workload.layers)
    return max(total)


def simulate(plan: Plan, periods: int) -> list[Span]:
    """What every worker begins in the first `periods` periods, in that order."""
    return _Simulation(plan).run(lambda now: now >= periods)


def entries(plan: Plan, chunks: int) -> list[Fraction]:
    """When each of the first `chunks` chunks begins its first step, in periods."""
    simulation = _Simulation(plan)
    simulation.run(lambda now: len(simulation.began) >= chunks)
    return [simulation.began[chunk] for chunk in range(chunks)]


def pace_of(plan: Plan) -> Fraction:
    """Periods per chunk in steady running: 1 unless chunks wait for each other."""
    last = max((v.holds for v in plan.workload.versions), default=0)
    # Long after the pipeline has filled and the last version has come; chunks may enter in bursts, hence the average.
    first, turn = last + 2 * plan.in_flight, 2 * plan.in_flight
    when = entries(plan, first + turn + 1)
    return (when[first + turn] - when[first]) / turn


def slots(plan: Plan) -> int:
    """Parts of a period that show every pass of the slowest worker as one mark, as far as there is room."""
    load = plan.load()
    slowest = load.index(max(load))
    passes = sum(row.count(slowest) for row in plan.owners)
    if plan.workload.commits_every_chunk:
        passes += sum(row.count(slowest) for row in plan.rows)
    return min(passes, MOST_SLOTS)


def marks(plan: Plan, periods: int) -> list[list[list[str]]]:
    """A drawing as marks[worker][period][slot]: a chunk's number, or one of IDLE, SINK, COMMIT.

    A slot shows what fills half of it or more; what fills no slot by half shows where it fills most, if that is free.
    """
    count = slots(plan)
    rows = [[IDLE] * (periods * count) for _ in range(plan.workers)]
    small: list[tuple[Span, int]] = []
    for span in simulate(plan, periods):
        begins, ends = span.start * count, span.end * count
        touched = range(int(begins), min(math.ceil(ends), periods * count))
        cover = {i: min(ends, i + 1) - max(begins, i) for i in touched}
        half = [i for i in touched if cover[i] >= Fraction(1, 2)]
        if not half and cover:
            small.append((span, max(cover, key=cover.get)))
        for i in half:
            rows[span.worker][i] = _mark(span)
    for span, i in small:
        if rows[span.worker][i] == IDLE:
            rows[span.worker][i] = _mark(span)
    return [[row[p * count : (p + 1) * count] for p in range(periods)] for row in rows]


def _mark(span: Span) -> str:
    return {"sink": SINK, "commit": COMMIT}.get(span.what, str(span.chunk))


def draw(plan: Plan, periods: int = 10) -> list[str]:
    """Lines of a drawing: a header, then one row per worker and one cell per period.

    A period in which a worker is with one chunk throughout shows its number once; where it changes between chunks,
    one digit (the number's last) per pass.
    """
    width = max(slots(plan), 3)
    label = max(len("period"), len(f"worker {plan.workers - 1}"))
    lines = [" ".join([f"{'period':<{label}}", " ".join(f"{p:^{width}}" for p in range(periods))])]
    for worker, row in enumerate(marks(plan, periods)):
        cells = []
        for cell in row:
            same = len(set(cell)) == 1
            text = (cell[0] if cell[0] != IDLE else IDLE * len(cell)) if same else "".join(m[-1] for m in cell)
            cells.append(f"{text:^{width}}")
        lines.append(f"{f'worker {worker}':<{label}}|{'|'.join(cells)}|")
    return [line.rstrip() for line in lines]
