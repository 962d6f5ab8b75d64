"""What a chunk attends to, as data: where a pass writes, what it reads, and at which positions.

A *history* is a rule of a window, written as pure functions of a chunk's number: integers of the host, equal for all
layers, made once for a pass. What a rule does to what is in a bank (averages it, chooses among it) is said here as part
of a pass's *place*, and done by the bank, layer by layer, when the chunk's first pass begins there; later passes of the
chunk only write its own slots again. So a bank needs no counters, and any plan that brings a bank all passes of its
chunks in order has the same banks. Only an attention sink that adapts looks at every pass; what it found is in a queue
that is the bank's, too.

| history | what is read | used by |
|---|---|---|
| `Window` | attention sink and latest frames; the sink may average what leaves the window | Self-Forcing (arXiv 2506.08009), LongLive (2509.22622), Reward Forcing (2512.04678), arXiv 2512.04677 |
| `Compressed` | attention sink, chosen tokens of older frames, latest frames | Deep Forcing (2512.05081) |
| `Slotted` | slots of frames, the first of which stay, or adapt | StreamDiffusionV2 |
| `Joint` | attention sink and latest finished frames, beside several chunks that are denoised together | Rolling Forcing (2509.25161) |
"""  # noqa: E501

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from conf.schema import ModelConfig
from stages.denoise.layout import CHOICE, Layout, Run, Slots, runs_of


@dataclass(frozen=True)
class Place:
    """Where one pass stands in a bank.

    Attributes:
        frames: generated frames of the pass.
        runs: slots that it writes.
        reads: slots that it reads, in order.
        own: whether it reads its own keys and values beside them, since it writes them nowhere.
        merges: slots whose frames leave the window; before anything is written they are averaged into the attention
            sink, frame by frame.
        selects: whether the bank chooses, by this pass's queries, what stays of older frames. The pass is written at
            `runs`, and what it then reads has moved together.
        recalls: whether its last queries are kept for such a choice.
        compares: slots of the attention sink that hold a frame and are compared with the pass's one; 0: none is. The
            least like it may be the next to be written over, which the bank's queue of slots notes. Where `runs` is
            empty the pass is written into the slot at the head of that queue, which no host knows.
        advances: whether that slot then leaves the head of the queue.
        positions: temporal positions of the frames; None: their own numbers.
    """

    frames: range
    runs: tuple[Run, ...]
    reads: tuple[Slots, ...]
    own: bool = False
    merges: tuple[int, ...] = ()
    selects: bool = False
    recalls: bool = False
    compares: int = 0
    advances: bool = False
    positions: range | None = None

    @property
    def at(self) -> range:
        """Positions of the frames."""
        return self.frames if self.positions is None else self.positions

    def slots(self, layout: Layout) -> set[int]:
        """All that the pass changes, or may change."""
        changed = {slot for _, first, count in self.runs for slot in range(first, first + count)}
        if self.selects:
            changed |= set(range(layout.anchored, self.reads[-1][0] + self.reads[-1][1]))
        if self.compares and not self.runs:
            changed |= set(range(layout.frames))
        return changed | ({CHOICE} if self.selects or self.recalls or self.compares else set())


class History(ABC):
    """A rule, over banks of one layout.

    Args:
        model: its settings.
        layout: slots of the tokens' banks, or of an adapter's.
    """

    def __init__(self, model: ModelConfig, layout: Layout):
        self.model, self.layout, self.c = model, layout, model.chunk_frames

    @abstractmethod
    def step(self, chunk: int, step: int, begins: bool) -> Place:
        """Of a denoising step; `begins`: of the first one of its chunk in the bank."""

    @abstractmethod
    def commit(self, chunk: int) -> Place:
        """Of a finished chunk's clean pass."""

    def sink(self, place: Place, distance: int) -> range | None:
        """Temporal positions of the attention-sink frames that a pass reads; None: it reads none.

        Args:
            distance: drawn for the pass, where `model.positions` asks for one.
        """
        rule, shift = self.model.positions, self.model.sink_shift
        return self.layout.sink_positions(rule, place.frames.stop - self.c, self.c, shift, distance)

    @property
    @abstractmethod
    def distinct(self) -> range:
        """The first chunks, such that the places of every later one are those of one of them, but for `frames`."""


class Window(History):
    """Attention sink and ring: a frame's slot is a function of its index, and what is read is a prefix of the bank."""

    def step(self, chunk: int, step: int, begins: bool) -> Place:
        first, layout = chunk * self.c, self.layout
        merges = ()
        if begins and self.model.sink_ema is not None and first + self.c > layout.sink + layout.ring:
            merges = tuple(layout.slot(frame) for frame in range(first, first + self.c))
        return self._place(range(first, first + self.c), merges)

    def commit(self, chunk: int) -> Place:
        return self._place(range(chunk * self.c, (chunk + 1) * self.c))

    def again(self, frames: range) -> Place:
        """Of finished frames that are run again with another prompt, which `model.prompt_switch` allows here alone."""
        return self._place(frames)

    def _place(self, frames: range, merges: tuple[int, ...] = ()) -> Place:
        layout = self.layout
        reads = ((0, layout.visible(frames.stop)),)
        return Place(frames, runs_of(frames, layout.slot), reads, merges=merges)

    @property
    def distinct(self) -> range:
        layout, c = self.layout, self.c
        full = -(-(layout.sink + layout.ring) // c) - 1
        # The ring fills, and turns until a chunk has the slots that another one had.
        return range(full + layout.ring // math.gcd(layout.ring, c))


class Compressed(History):
    """Attention sink, `budget - sink - recent` frames' worth of single tokens, latest frames.

    Frames are appended until one chunk more would exceed the window. That chunk's first pass is appended all the same;
    tokens between the attention sink and the latest `recent` frames then compete by the sum of their products with the
    latest `recent` frames' queries, and what wins closes up, so that `budget` frames are left (participative
    compression, arXiv 2512.05081, as its published code does it).
    """

    def __init__(self, model: ModelConfig, layout: Layout):
        super().__init__(model, layout)
        rule, self.window = model.compress, model.window_frames
        self.budget = rule.budget_frames
        self.full = self.window // self.c
        """The first chunk that does not fit."""
        self.period = (self.window - self.budget) // self.c + 1
        """Chunks from one that does not fit to the next."""

    def fill(self, chunk: int) -> int:
        """Frames in the bank, the chunk's included, when it is read."""
        if chunk < self.full:
            return (chunk + 1) * self.c
        return self.budget + (chunk - self.full) % self.period * self.c

    def _overflows(self, chunk: int) -> bool:
        return chunk >= self.full and (chunk - self.full) % self.period == 0

    def step(self, chunk: int, step: int, begins: bool) -> Place:
        if begins and self._overflows(chunk):
            return self._place(chunk, self.fill(chunk - 1) if chunk else 0, selects=True)
        return self._place(chunk, self.fill(chunk) - self.c)

    def commit(self, chunk: int) -> Place:
        return self._place(chunk, self.fill(chunk) - self.c, recalls=True)

    def _place(self, chunk: int, at: int, selects: bool = False, recalls: bool = False) -> Place:
        frames, reference = range(chunk * self.c, (chunk + 1) * self.c), self.layout.reference
        runs, reads = ((0, reference + at, self.c),), ((0, reference + self.fill(chunk)),)
        return Place(frames, runs, reads, selects=selects, recalls=recalls)

    def sink(self, place: Place, distance: int) -> range | None:
        """It moves with the chunks that do not fit, so that it starts as many positions before them as the bank then
        holds frames, and stays in between. What was chosen keeps its own positions."""
        chunk = place.frames.start // self.c
        existing = self.layout.reference + min(self.layout.sink, place.frames.start)
        start = -self.layout.reference
        if chunk >= self.full:
            latest = chunk - (chunk - self.full) % self.period
            start += latest * self.c - self.budget
        return range(start, start + existing)

    @property
    def distinct(self) -> range:
        return range(self.full + self.period)


class Slotted(History):
    """Slots of single frames, all of which are read, the pass's own among them: the window's first frames stay where
    they were written, the others take turns. A position is that of the frame, or where positions are refreshed, one
    that begins anew behind a first window; keys in the bank keep theirs.

    As StreamDiffusionV2's code does it, where the first chunk's frames and the one behind them stay in any case. A bank
    that several steps write moves on with a chunk's first one: once it is full, that writes over what the chunk before
    wrote last, and the steps behind it write one slot further, so that of each chunk its first step's frames stay.

    Where the attention sink adapts, every pass behind the first chunk is compared with it, and the slots of a full bank
    are written in the order of a queue: the attention-sink frames that were found unlike, the latest first and each
    once; while none waits, the slots that take turns. The published code also compares what its rows hold before the
    first chunk comes to them, and a new stream finds the queue of the one before; here neither is so.
    """

    def __init__(self, model: ModelConfig, layout: Layout):
        super().__init__(model, layout)
        self.kept = max(model.sink_frames, len(model.frames(0)) + 1)
        self.rolling = layout.ring - self.kept

    def step(self, chunk: int, step: int, begins: bool) -> Place:
        place, full = self._place(chunk, begins), self.layout.ring
        if self.model.adaptive_sink is None or chunk == 0:
            return place
        # A later step in the same bank finds what the one before it has written.
        held = place.frames.start if begins else place.frames.stop
        place = replace(place, compares=min(held, self.model.sink_frames))
        return replace(place, runs=(), advances=begins) if held >= full else place

    def commit(self, chunk: int) -> Place:
        return self._place(chunk, True)

    def _place(self, chunk: int, begins: bool) -> Place:
        frames = self.model.frames(chunk)
        behind = 0 if begins or frames.stop < self.layout.ring else len(frames)
        runs = runs_of(frames, lambda frame: self._slot(frame + behind))
        reads = ((0, min(frames.stop, self.layout.ring)),)
        return Place(frames, runs, reads, positions=self._positions(chunk, frames))

    def _slot(self, frame: int) -> int:
        return frame if frame < self.kept else self.kept + (frame - self.kept) % self.rolling

    def _positions(self, chunk: int, frames: range) -> range:
        """A new chunk whose position would be the one at which positions are refreshed has the last of a window."""
        limit, begins = self.model.refresh_frames, self.layout.ring - 1
        if limit is None or frames.start < limit:
            return frames
        first = next(i for i in range(chunk + 1) if self.model.frames(i).start >= limit)
        turn = -(-(limit - begins) // self.c)
        start = begins + (chunk - first) % turn * self.c
        return range(start, start + len(frames))

    def sink(self, place: Place, distance: int) -> range | None:
        return None

    @property
    def distinct(self) -> range:
        full = next(i for i in range(self.layout.ring + 1) if self.model.frames(i).stop >= self.layout.ring)
        if self.model.adaptive_sink is not None:
            return range(full + 2)
        return range(full + self.rolling // math.gcd(self.rolling, self.c))


class Joint(History):
    """Several chunks at rising levels in one pass, which see each other, the latest finished frames and the attention
    sink right before those. A finished chunk is written at t = 0, and sees as many finished frames as the window has.

    Step s of chunk i goes over chunks i to i + s, at steps s, s - 1, ..., 0 of theirs. Only chunk 0 has all steps:
    every later one is in the windows of the chunks before it, and of its own has the last step only.

    The ring holds all frames of the window, those of the attention sink included, since they are read as both.
    """

    def step(self, chunk: int, step: int, begins: bool) -> Place:
        first, count = chunk * self.c, (step + 1) * self.c
        frames, recent = range(first, first + count), self._recent(first, count)
        reads = ((0, min(self.layout.sink, first)), *self._in_ring(recent))
        return Place(frames, (), tuple(one for one in reads if one[1]), own=True)

    def _recent(self, first: int, count: int) -> range:
        """Finished frames that a pass over `count` frames sees beside the attention sink."""
        room = self.model.window_frames - count - self.layout.sink
        return range(min(first, max(self.layout.sink, first - room)), first)

    def commit(self, chunk: int) -> Place:
        first, layout = chunk * self.c, self.layout
        frames = range(first, first + self.c)
        runs = runs_of(frames, self._slot)
        if (kept := min(self.c, layout.sink - first)) > 0:
            runs = (*runs, (0, first, kept))
        return Place(frames, runs, ((layout.sink, min(frames.stop, layout.ring)),))

    def _slot(self, frame: int) -> int:
        return self.layout.sink + frame % self.layout.ring

    def _in_ring(self, frames: range) -> list[Slots]:
        return [(slot, count) for _, slot, count in runs_of(frames, self._slot)]

    def sink(self, place: Place, distance: int) -> range | None:
        if not place.own:
            return None
        first = place.frames.start
        existing = min(self.layout.sink, first)
        start = self._recent(first, len(place.frames)).start - existing
        return range(start, start + existing)

    @property
    def distinct(self) -> range:
        turns = self.layout.ring // math.gcd(self.layout.ring, self.c)
        return range(-(-self.layout.ring // self.c) + turns)


def history_of(model: ModelConfig, layout: Layout) -> History:
    """The rule that a model's settings give."""
    kind = Joint if model.rule.joint else Slotted if model.slots else Compressed if model.compress else Window
    return kind(model, layout)
