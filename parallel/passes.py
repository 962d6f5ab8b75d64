"""Passes: every kind of work that a plan spreads, declared once.

A pass is a unit of work of one stream at one *place*: a cell, a bank of a block, or one of the last stages. A place has
counters, which say how far it has come. `PASSES` has a row for every kind of pass: the way it takes through the plan,
what its place's counters must have come to before it may run, which of them it then moves, how urgent it is, what it
carries, what it costs, and when it starts. The schedule, the workers, the simulator, costs and drawings read the table;
a workload brings its own, so a new kind is a new row.

Counters of a bank: `chunk` (the last chunk whose steps there are done), `commits` (clean chunks written), `reference`
(the chunk from which the reference in it is in force), `epoch` (the prompt it was made anew with), and any that a row
names. Counters of a last stage: `chunk` (the last one begun there) and `sidecar` (the last one whose sidecar has come).
They only rise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from parallel.plan import Plan, Workload

ROUTE, ROWS, STAGES, MARKS = "route", "rows", "stages", "marks"
"""Ways through a plan: cell by cell along the route; block by block along every row of banks; from one of the last
stages to the next; along the route and then the last stages, between two chunks."""

LEFT, OUT, SAVED = range(3)
"""What the `step` of a `done` says: the chunk has left the stages that streams share; its stream's output has written
it; a state was saved."""


class Pass(NamedTuple):
    """A unit of work; also a message that is none (`sidecar`, `done`), to say what it is about.

    Attributes:
        kind: a name of the table.
        stream: its number.
        chunk: which. Of a `prefill` the first chunk that reads the reference; of a `recache` the first that reads the
            bank made anew; of a mark (`save`, `end`) the number of chunks before it.
        step: of the route. Of a pass along rows the row's number; at the last stages the number of steps, and the
            stage's own number on top.
        block: of layers; 0 at the last stages.
        level: the bank that it reads or writes.
        epoch: the chunk with which the prompt began that it is run with.
    """

    kind: str
    stream: int
    chunk: int
    step: int = 0
    block: int = 0
    level: int = 0
    epoch: int = 0


class Due:
    """What must be in a bank before a chunk reads it.

    Args:
        workload: what is spread, with its table.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.kinds = tuple(k for k in workload.passes if k.counter and k.path in (ROUTE, ROWS))
        self._made = tuple(k for k in self.kinds if not k.again)

    @property
    def first(self) -> dict[str, int]:
        """Counters of a bank that holds nothing."""
        return {kind.counter: kind.begins for kind in self.kinds}

    def settled(self, chunk: int, epoch: int = 0) -> dict[str, int]:
        """All of it: what earlier chunks left, and what is in force from `chunk` on."""
        return {kind.counter: kind.due(self.workload, chunk, epoch) for kind in self.kinds}

    def made(self, chunk: int) -> dict[str, int]:
        """What the chunks before `chunk` left."""
        return {kind.counter: kind.due(self.workload, chunk, 0) for kind in self._made}

    def resumed(self, chunk: int) -> dict[str, int]:
        """Counters of a bank from a state that was saved before `chunk`. What is in force only from then on comes
        again."""
        at = {kind: chunk - kind.again for kind in self.kinds}
        return {kind.counter: kind.due(self.workload, at[kind], at[kind]) for kind in self.kinds}


def _nothing(*_: object) -> Iterable[int]:
    return ()


def _no_bytes(workload: Workload, item: Pass) -> int:
    return 0


def _chunk(item: Pass) -> int:
    return item.chunk


def _once(workload: Workload) -> int:
    return 1


def _chunk_due(workload: Workload, chunk: int, epoch: int) -> int:
    return chunk - 1


@dataclass(frozen=True)
class Kind:
    """A kind of pass: one row of the table.

    Attributes:
        name: as passes and messages say it.
        path: the way it takes: ROUTE, ROWS, STAGES or MARKS.
        reads: (what is due, pass) -> what counters of its place must have come to, at least, before it may run.
        counter: the counter of its place that it moves; empty: none.
        begins: that counter's first value.
        writes: pass -> the counter's value when the pass has run.
        due: (workload, chunk, epoch) -> the counter's value that a chunk needs.
        again: whether what is in force only from a state's chunk on is still to come where a stream goes on from it.
        urgency: smaller goes first among ready passes; at PLACE whatever is furthest along the route.
        cargo: (workload, pass) -> bytes of tensors that travel to where it runs.
        timed: whose measured times it has: `step`, `commit` or `prefill`.
        chunks: workload -> chunks it goes over in one pass.
        on_entry: (workload, chunk, epoch) -> chunks of the passes that start when a chunk enters.
        on_final: (workload, chunk) -> chunks of the passes that start when a chunk's latents are final.
        ends: whether nothing comes to a block after it: it waits for all banks there, and for all that is announced.
        brings: what travels to banks, in words, where it starts as a chunk enters; `makes`: where it starts as latents
            are final. Empty: its name.
    """

    name: str
    path: str
    reads: Callable[[Due, Pass], Mapping[str, int]]
    counter: str = ""
    begins: int = -1
    writes: Callable[[Pass], int] = _chunk
    due: Callable[[Workload, int, int], int] = _chunk_due
    again: bool = False
    urgency: int = 1
    cargo: Callable[[Workload, Pass], int] = _no_bytes
    timed: str = "step"
    chunks: Callable[[Workload], int] = _once
    on_entry: Callable[[Workload, int, int], Iterable[int]] = _nothing
    on_final: Callable[[Workload, int], Iterable[int]] = _nothing
    ends: bool = False
    brings: str = ""
    makes: str = ""

    @property
    def carries_chunk(self) -> bool:
        """Whether it takes a chunk on: then the seconds spent on the chunk travel along."""
        return self.path in (ROUTE, STAGES)


SAVE, BANK, PLACE = range(3)
"""Urgencies. A state is of the moment between two chunks, so it is saved before anything of the next; others wait for
passes that write banks outside the route."""


@dataclass(frozen=True)
class Passes:
    """The table: rows by name, in the order in which passes start."""

    kinds: tuple[Kind, ...]

    @cached_property
    def _by_name(self) -> dict[str, Kind]:
        return {kind.name: kind for kind in self.kinds}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self.kinds)

    def __getitem__(self, name: str) -> Kind:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def on(self, *paths: str) -> tuple[str, ...]:
        """Names of the kinds that take these ways."""
        return tuple(kind.name for kind in self.kinds if kind.path in paths)

    def also(self, *kinds: Kind) -> Passes:
        """With more rows."""
        return Passes((*self.kinds, *kinds))


# -- what rows say ----------------------------------------------------------------------------------------------------


def _settled(due: Due, item: Pass) -> Mapping[str, int]:
    return due.settled(item.chunk, item.epoch)


def _settled_but_for_the_prompt(due: Due, item: Pass) -> Mapping[str, int]:
    return due.settled(item.chunk) | {"epoch": 0}


def _made(due: Due, item: Pass) -> Mapping[str, int]:
    return due.made(item.chunk)


def _finished_here(due: Due, item: Pass) -> Mapping[str, int]:
    return {"chunk": item.chunk, "commits": item.chunk}


def _in_turn_with_sidecar(due: Due, item: Pass) -> Mapping[str, int]:
    return {"chunk": item.chunk - 1, "sidecar": item.chunk}


def _next(item: Pass) -> int:
    return item.chunk + 1


def _epoch(item: Pass) -> int:
    return item.epoch


def _commits_due(workload: Workload, chunk: int, epoch: int) -> int:
    if workload.rule.commits:
        return chunk
    return sum(v.kind == "commit" and v.in_force_from <= chunk for v in workload.versions)


def _reference_due(workload: Workload, chunk: int, epoch: int) -> int:
    made = (v.in_force_from for v in workload.versions if v.kind == "prefill")
    return max((first for first in made if first <= chunk), default=-1)


def _epoch_due(workload: Workload, chunk: int, epoch: int) -> int:
    return epoch if workload.recache_chunks else 0


def _hidden(workload: Workload, item: Pass) -> int:
    return workload.hidden_bytes if item.block else 0


def _hidden_of_all(workload: Workload, item: Pass) -> int:
    return workload.recache_chunks * _hidden(workload, item)


def _latents_and_hidden(workload: Workload, item: Pass) -> int:
    return workload.latent_bytes + _hidden(workload, item)


def _finished_and_hidden(workload: Workload, item: Pass) -> int:
    """Of one chunk; those that were denoised with it, and are not finished, stay where layers begin."""
    latents = workload.final_bytes if item.block else workload.latent_bytes
    return latents + _hidden(workload, item) // (workload.ahead + 1)


def _latents_or_pictures(workload: Workload, item: Pass) -> int:
    return workload.final_bytes if item.step == workload.steps else workload.picture_bytes


def _recached(workload: Workload) -> int:
    return workload.recache_chunks


def _every_chunk(workload: Workload, chunk: int, epoch: int = 0) -> Iterable[int]:
    return (chunk,)


def _given_references(workload: Workload, chunk: int, epoch: int) -> Iterable[int]:
    return [chunk for v in workload.versions if v.source < 0 and v.in_force_from == chunk]


def _generated_references(workload: Workload, chunk: int) -> Iterable[int]:
    return [v.in_force_from for v in workload.versions if v.kind == "prefill" and v.source == chunk]


def _new_prompts(workload: Workload, chunk: int, epoch: int) -> Iterable[int]:
    return [chunk] if workload.recache_chunks and 0 < chunk == epoch else []


def _clean_or_sink(workload: Workload, chunk: int) -> Iterable[int]:
    joins = any(v.kind == "commit" and v.source == chunk for v in workload.versions)
    return [chunk] if workload.rule.commits or joins else []


PASSES = Passes((
    # A finished chunk on the last stages: one behind the other on each, when its sidecar has come.
    Kind("stage", STAGES, _in_turn_with_sidecar, "chunk", urgency=BANK, cargo=_latents_or_pictures,
         on_final=_every_chunk),
    # The attention sink at t = 0, from the given reference or from a generated frame.
    Kind("prefill", ROWS, _made, "reference", due=_reference_due, again=True, urgency=BANK, cargo=_hidden,
         timed="prefill", on_entry=_given_references, on_final=_generated_references,
         brings="reference", makes="sink or commit"),
    # The bank made anew with another prompt, from the chunks in its window.
    Kind("recache", ROWS, _settled_but_for_the_prompt, "epoch", 0, _epoch, _epoch_due, again=True, urgency=BANK,
         cargo=_hidden_of_all, timed="commit", chunks=_recached, on_entry=_new_prompts,
         brings="prompt"),
    # The clean write of a finished chunk, into the ring or the attention sink.
    Kind("commit", ROWS, _finished_here, "commits", 0, _next, _commits_due, urgency=BANK, cargo=_finished_and_hidden,
         timed="commit", on_final=_clean_or_sink, makes="sink or commit"),
    # One denoising step over one block.
    Kind("step", ROUTE, _settled, "chunk", urgency=PLACE, cargo=_latents_and_hidden, on_entry=_every_chunk),
    # Between two chunks: the state before the next, and the end of the stream.
    Kind("save", MARKS, _made, urgency=SAVE),
    Kind("end", MARKS, _made, urgency=PLACE, ends=True),
))  # fmt: skip
"""The product's table."""


# -- what starts, and where -------------------------------------------------------------------------------------------


def along_rows(plan: Plan, item: Pass) -> Iterator[tuple[int, Pass]]:
    """A pass along rows, for the first block of each: (worker, pass)."""
    for row, workers in enumerate(plan.rows):
        yield workers[0], item._replace(step=row)


def _started(plan: Plan, kind: Kind, item: Pass) -> Iterable[tuple[int, Pass]]:
    if kind.path == ROWS:
        return along_rows(plan, item)
    if kind.path == STAGES:
        return [(plan.stages[0].worker, item._replace(step=plan.workload.steps))]
    step = plan.workload.first_step(item.chunk) if kind.path == ROUTE else 0
    return [(plan.owners[step][0], item._replace(step=step))]


def entering(plan: Plan, stream: int, chunk: int, epoch: int = 0) -> list[tuple[int, Pass]]:
    """What enters a plan for one chunk, as (worker, pass) in the order of sending: a `sidecar` for every worker of the
    last stages, what must be in banks before, and the chunk itself.

    Args:
        epoch: the chunk with which the prompt in force began.
    """
    workload = plan.workload
    found = [(worker, Pass("sidecar", stream, chunk)) for worker in plan.stage_workers]
    for kind in workload.passes:
        for number in kind.on_entry(workload, chunk, epoch):
            found += _started(plan, kind, Pass(kind.name, stream, number, epoch=epoch))
    return found


def finishing(plan: Plan, stream: int, chunk: int) -> Iterator[tuple[int, Pass]]:
    """What starts when a chunk's latents are final, as (worker, pass)."""
    if len(plan.stages) == 1:
        # Nothing that streams share is left to do.
        yield plan.encode, Pass("done", stream, chunk, LEFT)
    for kind in plan.workload.passes:
        for number in kind.on_final(plan.workload, chunk):
            yield from _started(plan, kind, Pass(kind.name, stream, number))
