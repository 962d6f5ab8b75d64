"""Plans: which worker runs which cell, and everything that follows from it. Data, checked before anything loads.

A cell is one denoising step over one block of layers. A chunk's *route* visits the cells in the order that
reads and writes allow: step 0 block 0, step 0 block 1, ..., last step last block. Behind it come the *last stages*:
decode and post where pictures are made, and output. A *row* is the way a pass over all layers takes through the workers
that hold one step's banks; passes that write a bank outside the route (prefill, commit, recache) run along every row,
so that every worker that reads a bank also wrote it. Which passes there are is said in `parallel.passes`. A worker is
one process, or where passes are shared (sequence parallelism) as many as the plan's *degree*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import groupby, pairwise
from typing import NamedTuple

from conf.contexts import CONTEXTS, ContextRule
from parallel.passes import PASSES, ROWS, Kind, Pass, Passes


class Cell(NamedTuple):
    """One step over one block. The last stages are cells, too: number i of them has step S + i and block 0."""

    step: int
    block: int


class Member(NamedTuple):
    """A process of a plan: one of the `degree` that share a worker's passes. Rank 0 is all else the worker is."""

    worker: int
    rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is all else the worker is."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"{self.worker}.{self.rank}" if self.rank else str(self.worker)


class Stage(NamedTuple):
    """One of the last stages: `decode`, `post` or `output`, and its worker."""

    name: str
    worker: int


class Version(NamedTuple):
    """A version of the attention sink: made from chunk `source` (-1: the reference), in force from the chunk named.

    `kind` is the pass that makes it: a `prefill` of a reference frame, or the `commit` of a chunk that joins the sink.
    """

    source: int
    in_force_from: int
    kind: str = "prefill"


class Taken(NamedTuple):
    """Bytes that a stage takes beside its weights: for each stream, and once for all of them, at most."""

    each: int = 0
    once: int = 0


class StageBytes(NamedTuple):
    """What stages beside cells take."""

    encode: Taken = Taken()
    decode: Taken = Taken()
    post: Taken = Taken()
    output: Taken = Taken()


NOTHING = StageBytes()


@dataclass(frozen=True)
class Workload:
    """What is to be spread, in plain numbers.

    Attributes:
        steps, layers: of one chunk.
        context: the context rule's name.
        versions: of the attention sink, in order.
        decodes: whether pictures are made (else output hashes and keeps latents, and that is all).
        posts: whether pictures pass another stage before output.
        latent_bytes, hidden_bytes: of a message between steps, and between blocks (latents travel along).
        picture_bytes: of a chunk's pictures, from decode to post.
        layer_bytes: weights of each layer.
        range_bytes: weights every block range needs besides its layers; `first_bytes`, `last_bytes` those of the
            network's two ends; `encode_bytes`, `decode_bytes`, `post_bytes` those of the other stages.
        taken: what those stages take of memory beside their weights.
        bank_bytes: of a layer's bank at one level, which the processes of a worker share.
        shared_bytes, whole_bytes: of each layer's adapters' banks: those that processes share, and those that each has
            whole; empty: none has any.
        once_bytes: of what a layer keeps beside a bank, of what all passes of a chunk over it have in common, which
            processes of a worker share.
        states_bytes: of what a layer keeps of one stream's text while a prompt holds.
        recorded: whether passes are recorded as graphs.
        heads, tokens_per_frame: what sharing a pass divides; 0: not known, and not checked.
        recache_chunks: finished chunks that a new prompt runs again, at most; 0: it runs none.
        undivided: why the steps of a block cannot be on different workers; empty: they can.
        passes: the table of pass kinds.
    """

    steps: int
    layers: int
    context: str = "same_level"
    versions: tuple[Version, ...] = ()
    decodes: bool = True
    posts: bool = False
    latent_bytes: int = 0
    hidden_bytes: int = 0
    picture_bytes: int = 0
    layer_bytes: tuple[int, ...] = ()
    range_bytes: int = 0
    first_bytes: int = 0
    last_bytes: int = 0
    encode_bytes: int = 0
    decode_bytes: int = 0
    post_bytes: int = 0
    taken: StageBytes = NOTHING
    bank_bytes: int = 0
    shared_bytes: tuple[int, ...] = ()
    whole_bytes: tuple[int, ...] = ()
    once_bytes: int = 0
    states_bytes: int = 0
    recorded: bool = False
    heads: int = 0
    tokens_per_frame: int = 0
    recache_chunks: int = 0
    undivided: str = ""
    passes: Passes = field(default=PASSES, repr=False)

    @property
    def rule(self) -> ContextRule:
        """What the context rule means."""
        return CONTEXTS[self.context]

    def banks(self, degree: int) -> list[float]:
        """Bytes of all banks of each layer at one level, and of what is kept beside them, in each of `degree`
        processes."""
        none = (0,) * self.layers
        more = zip(self.shared_bytes or none, self.whole_bytes or none, strict=True)
        return [(self.bank_bytes + self.once_bytes + shared) / degree + whole for shared, whole in more]

    def first_step(self, chunk: int) -> int:
        """The step with which a chunk's way through the route begins (`stages.denoise.schedule.Schedule`)."""
        return self.steps - 1 if self.rule.joint and chunk else 0

    def share_of(self, step: int) -> Fraction | int:
        """What a step takes of the time of one in steady running: fewer chunks are denoised together while a window
        fills."""
        return Fraction(step + 1, self.steps) if self.rule.joint else 1

    @property
    def share_of_row(self) -> Fraction | int:
        """What a pass along rows takes of the time of a step, which goes over all chunks that are denoised together: it
        goes over one."""
        return Fraction(1, self.steps) if self.rule.joint else 1

    @property
    def ahead(self) -> int:
        """Chunks between one whose pass is due and the one whose noise enters with it, which leaves so much later."""
        return self.steps - 1 if self.rule.joint else 0

    @property
    def final_bytes(self) -> int:
        """Of a message with a finished chunk's latents alone."""
        return self.latent_bytes // (self.ahead + 1)

    @property
    def commits_every_chunk(self) -> bool:
        """Whether chunk i + 1 waits for the clean pass of chunk i."""
        return self.rule.commits

    @cached_property
    def brought(self) -> tuple[Kind, ...]:
        """Kinds of passes along rows that start when some chunk enters."""
        first = (kind for kind in self.passes if kind.path == ROWS)
        return tuple(k for k in first if any(tuple(k.on_entry(self, chunk, chunk)) for chunk in (0, 1)))

    @cached_property
    def made(self) -> tuple[Kind, ...]:
        """Kinds of passes along rows that start when some chunk's latents are final."""
        some = range(self._steady + 1)
        return tuple(k for k in self.passes if k.path == ROWS and any(tuple(k.on_final(self, c)) for c in some))

    @cached_property
    def every_chunk(self) -> tuple[Kind, ...]:
        """Those of `made` that start for every chunk. The next chunk of the stream waits for them."""
        return tuple(kind for kind in self.made if tuple(kind.on_final(self, self._steady)))

    @property
    def _steady(self) -> int:
        """A chunk that no version of the attention sink is made from, nor any later one."""
        return 1 + max((v.source for v in self.versions), default=0)


class Hop(NamedTuple):
    """Messages from one worker to another."""

    source: int
    target: int
    what: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Cells on workers.

    Attributes:
        name: of the builder.
        workload: what is spread.
        blocks: layer ranges, in order, covering all layers.
        owners: owners[step][block] is a worker's index.
        encode, decode: workers of these stages; where no pictures are made, decode is that of output.
        workers: how many there are.
        degree: processes of every worker that owns cells; a worker without cells is one process.
        limit: chunks in flight at most, where it is known better than from counting layers.
        post: the worker of the stage behind decode; None: decode's.
    """

    name: str
    workload: Workload
    blocks: tuple[range, ...]
    owners: tuple[tuple[int, ...], ...]
    encode: int
    decode: int
    workers: int
    degree: int = 1
    limit: int | None = None
    post: int | None = None

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The last stages, in order. Output is beside the one before it."""
        w, post = self.workload, self.decode if self.post is None else self.post
        found = [Stage("decode", self.decode)] * w.decodes + [Stage("post", post)] * w.posts
        return (*found, Stage("output", found[-1].worker if found else self.decode))

    def stage_of(self, item: Pass) -> str:
        """The name of the last stage that a pass is at."""
        return self.stages[item.step - self.workload.steps].name

    @cached_property
    def stage_workers(self) -> tuple[int, ...]:
        """Workers of the last stages."""
        return tuple(dict.fromkeys(stage.worker for stage in self.stages))

    def owner(self, cell: Cell) -> int:
        """The worker of a cell, or of one of the last stages."""
        steps = self.workload.steps
        return self.owners[cell.step][cell.block] if cell.step < steps else self.stages[cell.step - steps].worker

    @cached_property
    def route(self) -> tuple[Cell, ...]:
        """The cells of one chunk, in order."""
        return tuple(Cell(s, b) for s in range(self.workload.steps) for b in range(len(self.blocks)))

    @property
    def lasting(self) -> tuple[tuple[int, ...], ...]:
        """Owners of the blocks, for every step that chunks have in steady running."""
        return self.owners[self.workload.first_step(1) :]

    def route_of(self, chunk: int) -> tuple[Cell, ...]:
        """The part of the route that a chunk takes."""
        return self.route[self.workload.first_step(chunk) * len(self.blocks) :]

    def after(self, cell: Cell) -> Cell | None:
        """The next cell of the route; None after the last, where the latents are final."""
        following = self.onward.get(cell)
        return None if following is None or following.step == self.workload.steps else following

    @cached_property
    def onward(self) -> dict[Cell, Cell]:
        """The way of a mark: behind every cell the next, then one of the last stages after another."""
        stages = (Cell(self.workload.steps + i, 0) for i in range(len(self.stages)))
        return dict(pairwise((*self.route, *stages)))

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Distinct ways through the blocks, in the order of their steps."""
        return tuple(dict.fromkeys(self.owners))

    def blocks_of(self, worker: int) -> tuple[int, ...]:
        """Blocks a worker holds."""
        return tuple(b for b in range(len(self.blocks)) if any(row[b] == worker for row in self.owners))

    def steps_of(self, worker: int, block: int) -> tuple[int, ...]:
        """Steps a worker runs over a block it holds."""
        return tuple(s for s, row in enumerate(self.owners) if row[block] == worker)

    def levels_of(self, worker: int, block: int) -> tuple[int, ...]:
        """Banks a worker holds for a block: those that its steps read."""
        return tuple(dict.fromkeys(self.workload.rule.level(step) for step in self.steps_of(worker, block)))

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Who every process is, by its number: worker by worker, so that those that share passes are neighbours."""
        owners = {worker for row in self.owners for worker in row}
        sizes = [self.degree if worker in owners else 1 for worker in range(self.workers)]
        return tuple(Member(worker, rank) for worker, size in enumerate(sizes) for rank in range(size))

    @property
    def processes(self) -> int:
        """How many processes there are."""
        return len(self.members)

    def group(self, worker: int) -> tuple[int, ...]:
        """Numbers of a worker's processes, by rank."""
        return tuple(number for number, member in enumerate(self.members) if member.worker == worker)

    @property
    def head(self) -> int:
        """The worker where chunks enter the route."""
        return self.owners[0][0]

    @property
    def tail(self) -> int:
        """The worker where latents become final."""
        return self.owners[-1][-1]

    @property
    def leaves(self) -> int:
        """The worker where a chunk leaves what streams share: all but output."""
        return self.stages[-2].worker if len(self.stages) > 1 else self.tail

    @cached_property
    def hops(self) -> tuple[Hop, ...]:
        """What travels between different workers, and how much per message."""
        w, first, last = self.workload, self.stages[0].worker, self.stages[-1].worker
        found = [Hop(self.encode, self.head, "conditioning", 0), Hop(self.tail, first, "latents", w.final_bytes)]
        for cell in self.route:
            following = self.after(cell)
            if following is not None:
                inside = following.block > 0
                size = w.latent_bytes + (w.hidden_bytes if inside else 0)
                found.append(Hop(self.owner(cell), self.owner(following), "hidden" if inside else "latents", size))
        for row in self.rows:
            found.extend(Hop(self.encode, row[0], kind.brings or kind.name, 0) for kind in w.brought)
            found.extend(Hop(a, b, "hidden", w.hidden_bytes) for a, b in pairwise(row))
            found.extend(Hop(self.tail, row[0], kind.makes or kind.name, w.latent_bytes) for kind in w.made)
        found += [Hop(a.worker, b.worker, "pictures", w.picture_bytes) for a, b in pairwise(self.stages)]
        found += [Hop(self.encode, worker, "sidecar", 0) for worker in self.stage_workers]
        found += [Hop(worker, self.encode, "done", 0) for worker in (self.leaves, last)]
        return tuple(dict.fromkeys(h for h in found if h.source != h.target))

    @cached_property
    def channels(self) -> tuple[tuple[int, int], ...]:
        """Ordered pairs of workers with a channel between them, sorted."""
        return tuple(sorted({(h.source, h.target) for h in self.hops}))

    def weight_bytes(self, worker: int, rank: int = 0) -> int:
        """Weights a process loads: those of its worker's layers and, if it is the first, stages; nothing else.

        Sharing passes divides banks and work, not weights: every process of a worker holds all its layers.
        """
        blocks = sum(self.block_bytes(b) for b in self.blocks_of(worker))
        return blocks + self.stage_bytes(worker) * (rank == 0)

    def block_bytes(self, block: int) -> int:
        """Weights of a block of layers."""
        w, layers = self.workload, self.blocks[block]
        ends = w.first_bytes * (layers.start == 0) + w.last_bytes * (layers.stop == w.layers)
        return w.range_bytes + sum(w.layer_bytes[i] for i in layers) + ends

    @property
    def spare_bytes(self) -> int:
        """Weights of a process that may become any member."""
        w = self.workload
        return sum(map(self.block_bytes, range(len(self.blocks)))) + w.encode_bytes + w.decode_bytes

    def stage_bytes(self, worker: int) -> int:
        """Weights of the stages beside cells that a worker has."""
        w, names = self.workload, {stage.name for stage in self.stages if stage.worker == worker}
        own = {"decode": w.decode_bytes, "post": w.post_bytes}
        return w.encode_bytes * (worker == self.encode) + sum(size for name, size in own.items() if name in names)

    def taken(self, worker: int) -> dict[str, Taken]:
        """What stages beside cells that a worker has take beside their weights."""
        names = ["encode"] * (worker == self.encode) + [stage.name for stage in self.stages if stage.worker == worker]
        return {name: getattr(self.workload.taken, name) for name in names}

    @cached_property
    def beginning(self) -> frozenset[Cell]:
        """Cells that are the first of a chunk on their worker over their bank."""
        found: dict[tuple[int, int, int], Cell] = {}
        for cell in self.route:
            found.setdefault((self.owner(cell), cell.block, self.workload.rule.level(cell.step)), cell)
        return frozenset(found.values())

    def bank_bytes(self, worker: int) -> int:
        """Banks of one stream in each process of a worker, and what is kept beside them."""
        banks = self.workload.banks(self.degree)
        blocks = ((self.blocks[b], len(self.levels_of(worker, b))) for b in self.blocks_of(worker))
        return int(sum(banks[layer] * levels for block, levels in blocks for layer in block))

    @cached_property
    def steps_of_workers(self) -> tuple[Fraction, ...]:
        """What each worker's passes of one chunk take, in steps of the whole network."""
        w, found = self.workload, [Fraction(0)] * self.workers
        shares = [(row, 1) for row in self.lasting] + [(row, w.share_of_row) for row in self.rows] * len(w.every_chunk)
        for row, share in shares:
            for block, worker in zip(self.blocks, row, strict=True):
                found[worker] += share * Fraction(len(block), w.layers)
        return tuple(found)

    def load(self, times: dict[str, float] | None = None) -> list[float]:
        """Time each worker spends on one chunk, in units of one step of the whole network.

        Args:
            times: durations of `step` (all layers, shared as this plan shares it), `encode`, `decode` and `post`; None:
                a step is 1, the others are 0.
        """
        times = {"step": 1.0} | (times or {})
        load = [times["step"] * float(steps) for steps in self.steps_of_workers]
        load[self.encode] += times.get("encode", 0.0)
        for stage in self.stages:
            load[stage.worker] += times.get(stage.name, 0.0)
        return load

    @cached_property
    def returns(self) -> bool:
        """Whether a chunk comes back to a worker that it has left, as in a ring."""
        route = (self.owner(cell) for cell in self.route)
        visits = [worker for worker, _ in groupby([*route, *(stage.worker for stage in self.stages)])]
        return len(visits) > len(set(visits))

    @property
    def share(self) -> float:
        """Share of the full rate at which it counts as full, where only whole chunks fill it: all of it where the limit
        was chosen."""
        return FULL if self.limit is None else 1.0

    @property
    def in_flight(self) -> int:
        """Chunks on their way at most, before anything was measured: ceil(sum of loads / slowest)."""
        if self.limit is not None:
            return self.limit
        owners, period = {worker for row in self.owners for worker in row}, max(self.load())
        # A stage on a worker of its own counts as one that takes a period.
        alone = {stage.name: period for stage in self.stages[:-1] if stage.worker not in owners}
        return whole(pace(self.load(alone)))

    @property
    def most_in_flight(self) -> int:
        """Chunks on their way at most, whatever is measured: by loads, and a quarter more for what messages take."""
        spare = max(1, round(0.25 * self.in_flight)) if self.limit is None and self.workers > 1 else 0
        return self.in_flight + spare

    def credits(self, streams: int, marks: int = 1) -> int:
        """Messages that a channel holds at most, so that no worker ever waits for room on one: a ring of full channels
        would wait for ever.

        Every chunk on its way may have a message of each kind on a channel. Chunks on their way are those in flight,
        and one of each stream that waited for a live source while others took the room. Marks take no room.

        Args:
            streams: open at once.
            marks: of a stream between two chunks: its end, and a state.
        """
        kinds = max(Counter(hop[:2] for hop in self.hops).values(), default=1) + marks - 1
        return kinds * (self.most_in_flight + streams) + marks * streams

    def idle_periods(self, version: Version) -> float:
        """Periods the head waits for an attention-sink version at most, beyond what the pipeline takes anyway.

        Chunk `source` enters in period `source` and is final when it has passed every cell; the prefill is at most
        one more pass. A period is the slowest worker's time per chunk.
        """
        if version.source < 0:
            return 0.0
        period = max(self.load())
        final = version.source + self.workload.steps / period
        return max(0.0, final + 1 / period - version.in_force_from)


def pace(times: Iterable[float], hops: float = 0.0) -> float:
    """Chunks that keep the slowest worker busy, and no more: sum of times / slowest.

    Args:
        times: of every worker, per chunk.
        hops: time of a chunk's messages; stages of its way that keep no worker busy.
    """
    times = list(times)
    return (sum(times) + hops) / max(times)


FULL = 0.98
"""Share of the full rate at which a pipeline counts as full, where only whole chunks can fill it: times vary, and one
chunk more is one period more of latency."""


def whole(chunks: float, share: float = FULL) -> int:
    """The fewest whole chunks that bring `share` of the rate which `chunks` in flight bring."""
    return max(1, math.ceil(round(share * chunks, 6)))
