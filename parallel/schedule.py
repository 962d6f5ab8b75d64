"""What a worker does next, decided from the plan alone: no tensors, no clock.

The real worker and the simulator share this, so what is predicted is what happens. The order of work on a bank is
total: chunk 0, what was made of chunk 0, chunk 1, ... A pass is ready when the counters of its place have come to what
its kind reads (`parallel.passes`); nothing else is waited for. Among ready passes of cells the one that others wait for
most goes first; of chunks that are due at some moment, what the earliest due needs. Ready passes of the last stages go
to those stages, in order.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from parallel.passes import LEFT, OUT, PLACE, ROUTE, ROWS, STAGES, Due, Pass, finishing
from parallel.plan import Cell, Plan, Version

Counters = dict[str, int]
"""How far a place has come."""


@dataclass
class _Waiting:
    """A pass that has come, with what belongs to it.

    Attributes:
        order: its urgency, then when it came; smaller goes first.
        item, load: the pass, and what belongs to it.
        places: whose counters it reads.
        reads: (counter, least value).
    """

    order: tuple[tuple[float, ...], int]
    item: Pass
    load: Any
    places: list[Counters]
    reads: list[tuple[str, int]]

    @property
    def ready(self) -> bool:
        return all(place[counter] >= least for counter, least in self.reads for place in self.places)


@dataclass
class _Stream:
    """A stream on a worker."""

    banks: dict[tuple[int, int], Counters]
    """By (block, level)."""
    stages: dict[int, Counters]
    """By step: those of the last stages that are here."""
    waiting: list[_Waiting] = field(default_factory=list)
    came: set[tuple[str, int]] = field(default_factory=set)
    """Passes of attention-sink versions that have come, as (kind, chunk)."""
    entered: int = 0
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
        self._kinds, self._due = {kind.name: kind for kind in self.workload.passes}, Due(self.workload)
        self._ready: list[tuple[tuple[float, ...], int, _Waiting]] = []
        self._staged: deque[_Waiting] = deque()
        self._number = count()
        level = self.workload.rule.level
        self._level = [level(step) for step in range(self.workload.steps)]
        self._levels = {block: plan.levels_of(worker, block) for block in plan.blocks_of(worker)}
        self._last = {(block, self._level[s]): s for block in self._levels for s in plan.steps_of(worker, block)}
        """The last step here that reads a bank."""
        self._head_last = max(plan.steps_of(plan.head, 0)), 0
        self._stages = [self.workload.steps + i for i, stage in enumerate(plan.stages) if stage.worker == worker]
        roles = {"cells": bool(self.cells), "stages": bool(self._stages), "head": worker == plan.encode}
        self.roles = frozenset(role for role, held in roles.items() if held)
        self.announced = {key_of(v): v.source for v in self.workload.versions}
        """(kind, chunk) of every attention-sink version's pass, and the chunk that it is made from."""

    # -- streams ----------------------------------------------------------------------------------------------------

    def open(self, stream: int) -> None:
        """Begin a stream."""
        banks = {(block, level): self._due.first for block, levels in self._levels.items() for level in levels}
        stages = {step: {"chunk": -1, "sidecar": -1} for step in self._stages}
        self.streams[stream] = _Stream(banks, stages, open=set(self.roles))

    def resume(self, stream: int, chunk: int) -> None:
        """Let a stream that was just opened go on with `chunk`. What is in force only from then on is still to come."""
        held = self.streams[stream]
        for bank in held.banks.values():
            bank.update(self._due.resumed(chunk))
        for stage in held.stages.values():
            stage["chunk"] = chunk - 1
        held.entered = chunk
        held.came = {key for key, source in self.announced.items() if 0 <= source < chunk}

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
    def ready(self) -> bool:
        """Whether a pass of a cell is ready."""
        return bool(self._ready)

    @property
    def waiting(self) -> int:
        """Passes that have come and were not taken yet."""
        return len(self._ready) + len(self._staged) + sum(len(held.waiting) for held in self.streams.values())

    # -- what is ready ----------------------------------------------------------------------------------------------

    def arrive(self, item: Pass, load: Any = None, due: float = math.inf) -> None:
        """Take in a pass that this worker is to run.

        Args:
            item, load: the pass, and what belongs to it.
            due: when its chunk has to be there, by any one clock.
        """
        held, kind = self.streams[item.stream], self._kinds[item.kind]
        key = item.kind, item.chunk
        if key in self.announced and kind.path == ROWS:
            held.came.add(key)
        reads = list(kind.reads(self._due, item).items())
        if item.step >= self.workload.steps:
            stage = held.stages[item.step]
            self._wait(
                held, item, load, [stage], [(counter, least) for counter, least in reads if counter in stage], due
            )
        elif kind.path == ROWS:
            for level in self._levels[item.block]:
                self._wait(held, item._replace(level=level), load, [held.banks[item.block, level]], reads, due)
        else:
            level = self._level[item.step]
            levels = self._levels[item.block] if kind.ends else (level,)
            places = [held.banks[item.block, level] for level in levels]
            self._wait(held, item._replace(level=level), load, places, reads, due)
        self._look(held)

    def _wait(
        self,
        held: _Stream,
        item: Pass,
        load: Any,
        places: list[Counters],
        reads: list[tuple[str, int]],
        due: float,
    ) -> None:
        urgency = self._kinds[item.kind].urgency
        order = (urgency, due, -item.step, -item.block) if urgency == PLACE else (urgency,)
        held.waiting.append(_Waiting((order, next(self._number)), item, load, places, reads))

    def sidecar(self, stream: int, chunk: int) -> None:
        """What goes with a finished chunk, directly from encode, has come; sidecars of a stream come in order."""
        held = self.streams[stream]
        for stage in held.stages.values():
            stage["sidecar"] = chunk
        self._look(held)

    def next(self) -> tuple[Pass, Any] | None:
        """The ready pass of a cell that others wait for most, and what came with it; it counts as taken."""
        while self._ready:
            _, _, entry = heapq.heappop(self._ready)
            if entry.item.stream in self.streams:
                return entry.item, entry.load
        return None

    def staged(self) -> Iterator[tuple[Pass, Any]]:
        """Ready passes of the last stages, and what came with them; they count as taken. A stage is to run what it is
        given in that order, each behind the one before it."""
        while self._staged:
            entry = self._staged.popleft()
            item, held = entry.item, self.streams.get(entry.item.stream)
            if held is None:
                continue
            kind = self._kinds[item.kind]
            if kind.path == STAGES:
                entry.places[0][kind.counter] = kind.writes(item)
                self._look(held)
            yield item, entry.load

    def may_enter(self, stream: int, chunk: int) -> bool:
        """Whether a chunk should be sampled: the one before has begun, and nothing that it reads is to be made first.

        What every chunk leaves behind (its steps' keys and values) is no reason to wait: it is there in time.
        """
        held = self.streams[stream]
        if Cell(0, 0) not in self.cells:
            return True
        if held.entered < chunk:
            return False
        due = self._beside_steps(chunk)
        if due == self._beside_steps(max(chunk - 1, 0)):
            return True
        bank = held.banks[0, self._level[0]]
        return bank["chunk"] >= chunk - 1 and all(bank[counter] >= least for counter, least in due.items())

    def _beside_steps(self, chunk: int) -> Counters:
        return {k.counter: k.due(self.workload, chunk, 0) for k in self._due.kinds if k.path == ROWS}

    def begins(self, item: Pass) -> bool:
        """Whether a pass is a chunk's first one on its route."""
        first = self.workload.first_step(item.chunk), 0
        return self._kinds[item.kind].path == ROUTE and (item.step, item.block) == first

    def passes_last(self, item: Pass) -> bool:
        """Whether a pass of this worker is a chunk's last one where its route began."""
        return self._kinds[item.kind].path == ROUTE and (item.step, item.block) == self._head_last

    def _look(self, held: _Stream) -> None:
        """Move what has become ready; readiness does not go away again."""
        waiting, held.waiting = held.waiting, []
        for entry in waiting:
            if not self._is_ready(held, entry):
                held.waiting.append(entry)
            elif entry.item.step >= self.workload.steps:
                self._staged.append(entry)
            else:
                heapq.heappush(self._ready, (*entry.order, entry))

    def _is_ready(self, held: _Stream, entry: _Waiting) -> bool:
        return entry.ready and (not self._kinds[entry.item.kind].ends or self._all_came(held, entry.item))

    def _all_came(self, held: _Stream, item: Pass) -> bool:
        """Whether every pass of an attention-sink version that is made from the stream's chunks has come.

        Beyond the first block only what takes effect comes: a reference that holds later is never put in before it.
        """
        if item.step >= self.workload.steps:
            return True
        due = {key for key, source in self.announced.items() if 0 <= source < item.chunk}
        if item.block:
            due = {key for key in due if key[0] == "commit" or key[1] <= item.chunk}
        return due <= held.came

    # -- what follows -----------------------------------------------------------------------------------------------

    def done(self, item: Pass) -> list[tuple[int, Pass]]:
        """A pass has run: what follows from it, as (worker, pass)."""
        held, kind = self.streams[item.stream], self._kinds[item.kind]
        if kind.path == ROUTE:
            found = self._after_step(held, item)
        elif kind.path == ROWS:
            found = self._after_row(held, item)
        elif kind.path == STAGES:
            found = self._after_stage(item)
        else:
            found = self._after_mark(item)
        if item.stream in self.streams:
            self._look(held)
        return found

    def entered(self, stream: int, chunk: int) -> None:
        """A chunk begins its first step here."""
        self.streams[stream].entered = chunk + 1

    def _after_step(self, held: _Stream, item: Pass) -> list[tuple[int, Pass]]:
        if item.step == self._last[item.block, item.level]:
            self._write(held.banks[item.block, item.level], item)
        following = self.plan.onward[Cell(item.step, item.block)]
        if following.step == self.workload.steps:
            return list(finishing(self.plan, item.stream, item.chunk))
        return [(self.plan.owner(following), item._replace(step=following.step, block=following.block, level=0))]

    def _after_row(self, held: _Stream, item: Pass) -> list[tuple[int, Pass]]:
        self._write(held.banks[item.block, item.level], item)
        row = self.plan.rows[item.step]
        # The first of a block's banks sends hidden states on along the row.
        if item.block + 1 < len(row) and item.level == self._levels[item.block][0]:
            return [(row[item.block + 1], item._replace(block=item.block + 1, level=0))]
        return []

    def _after_stage(self, item: Pass) -> list[tuple[int, Pass]]:
        stages, number = self.plan.stages, item.step - self.workload.steps
        if number == len(stages) - 1:
            return [(self.plan.encode, Pass("done", item.stream, item.chunk, OUT))]
        left = [(self.plan.encode, Pass("done", item.stream, item.chunk, LEFT))] if number == len(stages) - 2 else []
        return [*left, (stages[number + 1].worker, item._replace(step=item.step + 1))]

    def _after_mark(self, item: Pass) -> list[tuple[int, Pass]]:
        """On to the next cell, then to the next of the last stages."""
        cell = Cell(item.step, item.block)
        if self._kinds[item.kind].ends:
            if self.cells and cell == self.cells[-1]:
                self.close(item.stream, "cells")
            elif self._stages and item.step == self._stages[-1]:
                self.close(item.stream, "stages")
        following = self.plan.onward.get(cell)
        if following is None:
            return []
        return [(self.plan.owner(following), item._replace(step=following.step, block=following.block, level=0))]

    def _write(self, place: Counters, item: Pass) -> None:
        kind = self._kinds[item.kind]
        if kind.counter:
            place[kind.counter] = kind.writes(item)


def key_of(version: Version) -> tuple[str, int]:
    """(kind, chunk) of the pass that makes a version."""
    return version.kind, version.in_force_from if version.kind == "prefill" else version.source
