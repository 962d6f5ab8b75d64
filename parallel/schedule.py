"""What a worker does next, decided from the plan alone: no tensors, no clock.

The real worker and the simulator share this, so what is predicted is what happens. The order of work on a bank is
total: chunk 0, what was made of chunk 0, chunk 1, ... A pass is ready when everything before it on its bank is done,
and not sooner; nothing else is waited for. Among ready passes the one that others wait for most goes first: final
latents, passes that write an attention sink or a clean context, then whatever is furthest along the route.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from parallel.plan import Cell, Plan, Version


class Pass(NamedTuple):
    """A unit of work.

    Attributes:
        kind: `step`; `prefill`, `commit` or `recache` (writes a bank outside the route); `final` (decode and what
            follows); `save` (of the stream's state, between two chunks); `end` (of the stream, behind its last chunk).
            `done` tells the head that a chunk has left.
        stream: its number.
        chunk: which; of a prefill or recache the chunk from which it holds; of a save or an end the number of chunks
            before it.
        step: of the route; of a pass that writes a bank outside it the row of banks that it runs along.
        block: of layers.
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

    @property
    def writes_bank(self) -> bool:
        """Whether it runs outside the route."""
        return self.kind in ("prefill", "commit", "recache")


@dataclass
class Bank:
    """How far a bank is: the last chunk whose steps here are done, clean chunks written, the reference in it, and the
    epoch whose prompt it was made anew with."""

    chunk: int = -1
    commits: int = 0
    reference: int = -1
    epoch: int = 0


@dataclass
class _Stream:
    """A stream on a worker."""

    banks: dict[tuple[int, int], Bank]
    """By (block, level)."""
    waiting: list[tuple[tuple, int, Pass, Any]] = field(default_factory=list)
    received: set[tuple[str, int]] = field(default_factory=set)
    entered: int = 0
    finished: int = 0
    companions: set[int] = field(default_factory=set)
    open: set[str] = field(default_factory=set)


class Schedule:
    """One worker's part of a plan.

    Args:
        plan: the plan.
        worker: whose part.
    """

    def __init__(self, plan: Plan, worker: int):
        self.plan, self.worker, self.workload = plan, worker, plan.workload
        self.cells = [c for c in plan.route if plan.owner(c) == worker]
        self.streams: dict[int, _Stream] = {}
        self._ready: list[tuple[tuple, int, Pass, Any]] = []
        self._number = count()
        roles = {"cells": bool(self.cells), "finish": worker == plan.decode, "head": worker == plan.encode}
        self.roles = frozenset(role for role, held in roles.items() if held)
        self._references = tuple(v for v in self.workload.versions if v.kind == "prefill")
        self._commits = tuple(v for v in self.workload.versions if v.kind == "commit")
        self.announced = {key_of(v): v.source for v in self.workload.versions}
        """(kind, chunk) of every attention-sink version's pass, and the chunk that it is made from."""

    # -- streams ----------------------------------------------------------------------------------------------------

    def open(self, stream: int) -> None:
        """Begin a stream."""
        levels = {(b, level) for b in self.plan.blocks_of(self.worker) for level in self._levels(b)}
        self.streams[stream] = _Stream({key: Bank() for key in levels}, open=set(self.roles))

    def resume(self, stream: int, chunk: int) -> None:
        """Let a stream that was just opened go on with `chunk`. What holds from it or later is still to come."""
        held, (clean, _) = self.streams[stream], self._due(chunk)
        for bank in held.banks.values():
            bank.chunk, bank.commits, bank.reference = chunk - 1, clean, self._due(chunk - 1)[1]
            bank.epoch = chunk - 1
        held.entered = held.finished = chunk
        held.received = {key for key, source in self.announced.items() if 0 <= source < chunk}

    def close(self, stream: int, role: str) -> bool:
        """A role is over for a stream; returns whether that was the last one here."""
        held = self.streams.get(stream)
        if held is None:
            return False
        held.open.discard(role)
        if not held.open:
            del self.streams[stream]
        return not held.open

    @property
    def waiting(self) -> int:
        """Passes that have come and not run yet."""
        return len(self._ready) + sum(len(held.waiting) for held in self.streams.values())

    # -- what is ready ----------------------------------------------------------------------------------------------

    def arrive(self, item: Pass, load: Any = None) -> None:
        """Take in a pass that this worker is to run, with what belongs to it."""
        held = self.streams[item.stream]
        if item.writes_bank:
            held.received |= {(item.kind, item.chunk)} & self.announced.keys()
            items = [item._replace(level=level) for level in self._levels(item.block)]
        else:
            items = [item._replace(level=self._level(item.step))]
        held.waiting += [(_urgency(i), next(self._number), i, load) for i in items]
        self._look(held)

    def companion(self, stream: int, chunk: int) -> None:
        """What goes with a final chunk, by another way, has come."""
        held = self.streams[stream]
        held.companions.add(chunk)
        self._look(held)

    def next(self) -> tuple[Pass, Any] | None:
        """The ready pass that others wait for most, and what came with it; it counts as taken."""
        while self._ready:
            _, _, item, load = heapq.heappop(self._ready)
            if item.stream in self.streams:
                return item, load
        return None

    def may_enter(self, stream: int, chunk: int) -> bool:
        """Whether a chunk should be sampled: the one before has begun, and no sink or commit is waited for."""
        held = self.streams[stream]
        if Cell(0, 0) not in self.cells:
            return True
        if held.entered < chunk:
            return False
        if self._due(chunk) == self._due(max(chunk - 1, 0)):
            return True
        return self._settled(held.banks[0, self._level(0)], chunk)

    def passes_last(self, item: Pass) -> bool:
        """Whether a pass of this worker is a chunk's last one where its route began."""
        row = self.plan.rows[0]
        return item.kind == "step" and item.block == 0 and item.step == max(self.plan.steps_of(row[0], 0))

    def _look(self, held: _Stream) -> None:
        """Move what has become ready; readiness does not go away again."""
        waiting, held.waiting = held.waiting, []
        for entry in waiting:
            if self._is_ready(held, entry[2]):
                heapq.heappush(self._ready, entry)
            else:
                held.waiting.append(entry)

    def _is_ready(self, held: _Stream, item: Pass) -> bool:
        if item.kind == "final":
            return item.chunk == held.finished and item.chunk in held.companions
        if item.kind == "end":
            return self._end_ready(held, item)
        if item.kind == "save" and item.step == self.workload.steps:
            return held.finished == item.chunk
        bank = held.banks[item.block, item.level]
        if item.kind == "save":
            return bank.chunk == item.chunk - 1 and bank.commits == self._due(item.chunk)[0]
        if item.kind == "step":
            anew = not self.workload.recache_chunks or bank.epoch == item.epoch
            return anew and self._settled(bank, item.chunk)
        if item.kind == "recache":
            return self._settled(bank, item.chunk)
        if item.kind == "prefill":
            return bank.chunk == item.chunk - 1 and bank.commits == self._due(item.chunk)[0]
        return bank.chunk == item.chunk and bank.commits == item.chunk

    def _end_ready(self, held: _Stream, item: Pass) -> bool:
        """Nothing more will be done to this block's banks, and every version made from the stream has come.

        Beyond the first block only what takes effect comes: a reference that holds later is never put in before it.
        """
        if item.step == self.workload.steps:
            return held.finished == item.chunk
        commits = self._due(item.chunk)[0]
        banks = [bank for (block, _), bank in held.banks.items() if block == item.block]
        due = {key for key, source in self.announced.items() if 0 <= source < item.chunk}
        if item.block:
            due = {key for key in due if key[0] == "commit" or key[1] <= item.chunk}
        return all(b.chunk == item.chunk - 1 and b.commits == commits for b in banks) and due <= held.received

    def _due(self, chunk: int) -> tuple[int, int]:
        """What must be in a bank before `chunk` reads it: clean chunks, and the chunk its reference holds from."""
        clean = chunk if self.workload.commits_every_chunk else sum(v.holds <= chunk for v in self._commits)
        return clean, max((v.holds for v in self._references if v.holds <= chunk), default=-1)

    def _settled(self, bank: Bank, chunk: int) -> bool:
        return bank.chunk == chunk - 1 and (bank.commits, bank.reference) == self._due(chunk)

    # -- what follows -----------------------------------------------------------------------------------------------

    def done(self, item: Pass) -> list[tuple[int, Pass]]:
        """A pass has run: what follows from it, as (worker, pass)."""
        held = self.streams[item.stream]
        follow = {"step": self._after_step, "final": self._after_final, "save": self._along, "end": self._after_end}
        found = list(follow.get(item.kind, self._after_write)(held, item))
        if item.stream in self.streams:
            self._look(held)
        return found

    def entered(self, stream: int, chunk: int) -> None:
        """A chunk begins its first step here."""
        self.streams[stream].entered = chunk + 1

    def _after_step(self, held: _Stream, item: Pass) -> Iterator[tuple[int, Pass]]:
        last = max(s for s in self.plan.steps_of(self.worker, item.block) if self._level(s) == item.level)
        if item.step == last:
            held.banks[item.block, item.level].chunk = item.chunk
        following = self.plan.after(Cell(item.step, item.block))
        if following is not None:
            yield self.plan.owner(following), item._replace(step=following.step, block=following.block, level=0)
            return
        yield self.plan.decode, Pass("final", item.stream, item.chunk)
        made = [key for key, source in self.announced.items() if source == item.chunk]
        if self.workload.commits_every_chunk:
            made.append(("commit", item.chunk))
        for kind, chunk in made:
            yield from rows(self.plan, Pass(kind, item.stream, chunk))

    def _after_write(self, held: _Stream, item: Pass) -> Iterator[tuple[int, Pass]]:
        bank, row = held.banks[item.block, item.level], self.plan.rows[item.step]
        if item.kind == "prefill":
            bank.reference = item.chunk
        elif item.kind == "recache":
            bank.epoch = item.epoch
        else:
            bank.commits = item.chunk + 1
        # The first of a block's banks sends hidden states on along the row.
        if item.block + 1 < len(row) and item.level == self._levels(item.block)[0]:
            yield row[item.block + 1], item._replace(block=item.block + 1, level=0)

    def _after_final(self, held: _Stream, item: Pass) -> Iterator[tuple[int, Pass]]:
        held.finished = item.chunk + 1
        held.companions.discard(item.chunk)
        yield self.plan.encode, Pass("done", item.stream, item.chunk)

    def _after_end(self, held: _Stream, item: Pass) -> Iterator[tuple[int, Pass]]:
        cell = Cell(item.step, item.block)
        if item.step == self.workload.steps:
            self.close(item.stream, "finish")
            return
        if cell == self.cells[-1]:
            self.close(item.stream, "cells")
        yield from self._along(held, item)

    def _along(self, held: _Stream, item: Pass) -> Iterator[tuple[int, Pass]]:
        """Cell by cell along the route, then to the last stage, and no further."""
        if item.step == self.workload.steps:
            return
        following = self.plan.after(Cell(item.step, item.block))
        if following is None:
            yield self.plan.decode, item._replace(step=self.workload.steps, block=0, level=0)
        else:
            yield self.plan.owner(following), item._replace(step=following.step, block=following.block, level=0)

    # -- small things -----------------------------------------------------------------------------------------------

    def _level(self, step: int) -> int:
        return step if self.workload.context == "same_level" else 0

    def _levels(self, block: int) -> tuple[int, ...]:
        return self.plan.levels_of(self.worker, block)


def key_of(version: Version) -> tuple[str, int]:
    """(kind, chunk) of the pass that makes a version."""
    return version.kind, version.holds if version.kind == "prefill" else version.source


def rows(plan: Plan, item: Pass) -> Iterator[tuple[int, Pass]]:
    """A pass that writes banks, for the first block of every row of them: `step` is the row's number."""
    for row, workers in enumerate(plan.rows):
        yield workers[0], item._replace(step=row)


def _urgency(item: Pass) -> tuple:
    """Smaller goes first; equals go in the order they came."""
    # A state is of the moment between two chunks, so it is saved before anything of the next.
    first = {"save": -1, "final": 0, "prefill": 1, "commit": 1, "recache": 1}.get(item.kind, 2)
    return (first, -item.step, -item.block) if first == 2 else (first,)
