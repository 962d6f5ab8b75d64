"""A plan before it runs: which worker computes which chunk when, by the workers' own rules and without them.

Time is exact (fractions) and counted in *periods*: the time of the slowest worker per chunk. A cell takes its share
of the layers; every pass that writes an attention sink or a clean context counts as a whole step, which is the most
it can take; what travels arrives at once. A decoder with a worker of its own takes one period, as `Plan.in_flight`
presumes, and so does post; a stage that shares a worker takes no time, nor does output.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from parallel.passes import MARKS, ROUTE, ROWS, STAGES, Pass
from parallel.plan import Plan
from parallel.simulator import Simulator
from parallel.simulator import Span as Done

IDLE, SINK, COMMIT = ".", "s", "c"
"""Marks of a drawing: nothing to do, a pass that makes an attention sink, the clean pass of a finished chunk."""
FAR = 1000
"""Chunks ahead at which a version of an attention sink changes nothing that is drawn, predicted or watched."""
MOST_SLOTS = 8
"""Parts of a period that a drawing tells apart, at most."""


class Span(NamedTuple):
    """Work without a break.

    Attributes:
        worker: who.
        what: `step`, `sink`, `commit`, or one of the last stages.
        chunk: which; of a sink the first chunk that reads it.
        start, end: in periods.
    """

    worker: int
    what: str
    chunk: int
    start: Fraction
    end: Fraction


class Periods:
    """Durations in periods, for the simulator: exact, and messages take none.

    Args:
        plan: its cells; nothing was measured yet.
    """

    def __init__(self, plan: Plan):
        self.plan, self._step = plan, 1 / period_steps(plan)
        self._stages = [Fraction(not plan.blocks_of(stage.worker)) for stage in plan.stages[:-1]] + [Fraction(0)]

    def work(self, worker: int, item: Pass) -> Fraction:
        """A share of a step, or one period for a stage with a worker of its own; marks take nothing."""
        kind = self.plan.workload.passes[item.kind]
        if kind.path == STAGES:
            return self._stages[item.step - self.plan.workload.steps]
        if kind.path == MARKS:
            return Fraction(0)
        share = self.plan.workload.share_of(item.step) if kind.path == ROUTE else self.plan.workload.share_of_row
        return self._step * share * Fraction(len(self.plan.blocks[item.block]), self.plan.workload.layers)

    def sample(self, stream: int, chunk: int) -> Fraction:
        """None."""
        return Fraction(0)

    def encode(self, stream: int, chunk: int) -> Fraction:
        """None."""
        return Fraction(0)

    def handling(self, worker: int) -> Fraction:
        """None."""
        return Fraction(0)

    def travel(self, source: int, target: int, item: Pass) -> tuple[Fraction, Fraction]:
        """None."""
        return Fraction(0), Fraction(0)

    def shown(self, item: Pass) -> Fraction:
        """With its last."""
        return sum(self._stages)


def period_steps(plan: Plan) -> Fraction:
    """A period in steps of the whole network."""
    return max(plan.steps_of_workers)


def _simulated(plan: Plan) -> Simulator:
    simulator = Simulator(plan, Periods(plan), spans=True)
    simulator.open(0, Fraction(0))
    return simulator


def simulate(plan: Plan, periods: int) -> list[Span]:
    """What every worker begins in the first `periods` periods, in that order."""
    simulator = _simulated(plan)
    simulator.run(lambda: simulator.now >= periods)
    return [_span(plan, span) for span in simulator.spans if span.end > span.start]


def _span(plan: Plan, span: Done) -> Span:
    """As it is drawn: whatever makes an attention sink is one, `commit` is the clean context's."""
    worker, item, start, end = span
    path = plan.workload.passes[item.kind].path
    if path == ROWS and not (item.kind == "commit" and plan.workload.commits_every_chunk):
        return Span(worker, "sink", item.chunk + (item.kind == "commit"), start, end)
    return Span(worker, plan.stage_of(item) if path == STAGES else item.kind, item.chunk, start, end)


def entries(plan: Plan, chunks: int) -> list[Fraction]:
    """When each of the first `chunks` chunks begins its first step, in periods."""
    simulator, began = _simulated(plan), {}
    begins = simulator.workers[plan.head].schedule.begins

    def over() -> bool:
        fresh, simulator.spans = simulator.spans, []
        began.update({s.item.chunk: s.start for s in fresh if begins(s.item)})
        return len(began) >= chunks

    simulator.run(over)
    return [began[chunk] for chunk in range(chunks)]


def pace_of(plan: Plan) -> Fraction:
    """Periods per chunk in steady running: 1 unless chunks wait for each other."""
    last = max((v.in_force_from for v in plan.workload.versions if v.in_force_from < FAR), default=0)
    # Long after the pipeline has filled and the last version has come; chunks may enter in bursts, hence the average.
    first, turn = last + 2 * plan.in_flight, 2 * plan.in_flight
    when = entries(plan, first + turn + 1)
    return (when[first + turn] - when[first]) / turn


def slots(plan: Plan) -> int:
    """Parts of a period that show every pass of the slowest worker as one mark, as far as there is room."""
    load = plan.load()
    slowest = load.index(max(load))
    passes = sum(row.count(slowest) for row in plan.owners)
    passes += len(plan.workload.every_chunk) * sum(row.count(slowest) for row in plan.rows)
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
