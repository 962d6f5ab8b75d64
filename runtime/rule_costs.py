"""What the passes of a chunk cost in steady running, counted from their places: products, attention over the keys that
are read, and what the history rule does to a bank besides.

Operations are two for a multiply-add. Bytes are operands, each read or written once: of products, of attention without
its scores, and of what a rule copies. Norms, modulation and the rotation of a pass's own entries are left out, since
every rule has as much of them and a good implementation hides them behind the products. Of a pass these are counted for
every layer, of a rule for one layer's bank: it does the same in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from conf.schema import ModelConfig
from stages.denoise.history import History, Place, history_of
from stages.denoise.layout import Layout
from stages.denoise.rope import Rope
from stages.denoise.schedule import Schedule, configured

TURN, MERGE = 3, 3
"""Operations on a value: rotated with another (six real ones for two values), and averaged into another."""


class Work(NamedTuple):
    """Arithmetic, and bytes that it reads and writes."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Work:
        """So often."""
        return Work(self.flops * factor, self.bytes * factor)


class PassCost(NamedTuple):
    """Of one pass, or the mean of several.

    Attributes:
        layers: products and attention of every layer.
        rule: what is done besides to the bank of one.
    """

    layers: tuple[Work, ...]
    rule: Work

    @property
    def whole(self) -> Work:
        """All of it, in all layers."""
        return sum(self.layers, Work()) + self.rule.times(len(self.layers))


@dataclass(frozen=True)
class RuleCost:
    """Of a chunk in steady running.

    Attributes:
        step: a denoising step; the mean of all that a period of the rule has.
        steps: of them in a chunk: one where chunks are denoised together.
        commit: a clean pass, likewise; None: a chunk has none.
        once: what is made once for all passes over a bank, of every layer.
        banks: over which that is.
    """

    step: PassCost
    steps: int
    commit: PassCost | None
    once: tuple[Work, ...] = ()
    banks: int = 1

    @property
    def chunk(self) -> Work:
        """All passes of a chunk, on one worker."""
        found = self.step.whole.times(self.steps) + sum(self.once, Work()).times(self.banks)
        return found if self.commit is None else found + self.commit.whole

    @property
    def rule(self) -> Work:
        """What the rule does in a chunk besides, in all layers."""
        layers, commit = len(self.step.layers), self.commit.rule if self.commit else Work()
        return (self.step.rule.times(self.steps) + commit).times(layers)


class Passed(NamedTuple):
    """A pass of a chunk in order: which step (-1: the clean pass), its place, and how many frames of the attention sink
    are turned to other positions for it, wholly or only as far as they turn with time."""

    chunk: int
    step: int
    place: Place
    turned: int
    moved: int


@dataclass
class _Sink:
    """Where the attention sink of one bank stands."""

    placed: list[int | None] = field(default_factory=list)

    def turn(self, place: Place, history: History, distance: int) -> tuple[int, int]:
        """Move it as a pass wants it; returns how many frames that turns, as `Bank.place` does it: wholly, in time."""
        layout = history.layout
        self.placed = self.placed or [None] * layout.anchored
        wanted = history.sink(place, distance) or ()
        if place.merges:  # what is averaged is turned there and then
            averaged = slice(layout.reference, layout.reference + len(place.merges))
            self.placed[averaged] = wanted[averaged]
        moved = [frame for frame, position in enumerate(wanted) if self.placed[frame] != position]
        count = moved[-1] + 1 - moved[0] if moved else 0
        whole = count if moved and None in self.placed[moved[0] : moved[-1] + 1] else 0
        self.placed[: len(wanted)] = wanted
        for offset, slot, frames in place.runs:  # what is written stands where it was generated
            kept = max(0, min(frames, layout.anchored - slot))
            self.placed[slot : slot + kept] = place.frames[offset : offset + kept]
        return whole, count - whole


def passes(model: ModelConfig, layout: Layout) -> Iterator[list[Passed]]:
    """The passes of chunk 0, 1, 2, ... in order, for ever. A drawn distance is another for every pass."""
    history, schedule = history_of(model, layout), configured(model)
    drawn = (model.sink_shift.distance_min, model.sink_shift.distance_max)
    sinks: dict[int, _Sink] = {}
    for chunk in count():
        found: list[Passed] = []
        begun: set[int] = set()
        for step in (*range(schedule.first_step(chunk), len(schedule.steps)), *_clean(schedule, chunk)):
            level = model.rule.level(step) if step >= 0 else 0
            place = history.commit(chunk) if step < 0 else history.step(chunk, step, level not in begun)
            begun.add(level)
            turned = sinks.setdefault(level, _Sink()).turn(place, history, drawn[(chunk + step) % 2])
            found.append(Passed(chunk, step, place, *turned))
        yield found


def _clean(schedule: Schedule, chunk: int) -> range:
    return range(-1, 0) if schedule.clean and schedule.commits(chunk) else range(0)


def period(model: ModelConfig, layout: Layout) -> list[list[Passed]]:
    """The passes of the chunks after which a rule does all that it did once more, in steady running."""
    steady = history_of(model, layout).distinct.stop
    found: list[list[Passed]] = []
    for chunk, there in enumerate(passes(model, layout)):
        if chunk <= steady:
            continue
        if found and _slots(there) == _slots(found[0]):
            return found
        found.append(there)
    raise AssertionError("passes never end")


def _slots(some: list[Passed]) -> list[Place]:
    """Their places, whatever the chunk."""
    return [replace(one.place, frames=range(0)) for one in some]


def frames_written(model: ModelConfig, layout: Layout) -> list[tuple[float, int]]:
    """(in the mean, at most) slots of a bank with frames that one chunk, two, ... write in steady running; the last
    pair holds for more chunks, too."""
    steady = period(model, layout)
    of_chunks = [_written(passed, layout) for passed in steady]
    found: list[tuple[float, int]] = []
    # What chunks write from each of a period on. What adds nothing to any of these never does.
    since: list[set[int]] = [set() for _ in steady]
    for behind in count():
        for start, slots in enumerate(since):
            slots |= of_chunks[(start + behind) % len(steady)]
        counts = [len(slots) for slots in since]
        pair = sum(counts) / len(counts), max(counts)
        if found and found[-1] == pair:
            return found
        found.append(pair)
    raise AssertionError("chunks never end")


def _written(passed: list[Passed], layout: Layout) -> set[int]:
    """Slots of frames that a chunk's passes write in one of the banks, each of which they write alike."""
    slots = set().union(*(one.place.slots(layout) for one in passed))
    for one in passed:
        slots |= set(range(layout.reference, layout.reference + len(one.place.merges)))
    return {slot for slot in slots if slot >= 0}


class Counting:
    """Costs of passes over a model's banks.

    Args:
        model: the model.
        tokens: of a latent frame.
        itemsize: bytes of a value.
    """

    def __init__(self, model: ModelConfig, tokens: int, itemsize: int):
        self.model, self.layout, self.itemsize = model, Layout.of(model, tokens), itemsize
        head = model.network.head_dim
        self.moving = Rope(head, 1, 1).moving / (head // 2)
        """Share of a key's channels that is turned again where only its position in time is another."""

    def chunk(self) -> RuleCost:
        """The mean of a period."""
        chunks = period(self.model, self.layout)
        steps = [one for passed in chunks for one in passed if one.step >= 0]
        commits = [one for passed in chunks for one in passed if one.step < 0]
        steady = len(self.model.frames(1))
        return RuleCost(
            self._mean(steps), len(steps) // len(chunks), self._mean(commits) if commits else None,
            self._made_once(steady * self.layout.tokens), self.model.levels,
        )  # fmt: skip

    def keys(self, place: Place) -> int:
        """Tokens that a pass reads."""
        layout = self.layout
        fixed = layout.fixed if place.reads and place.reads[0][0] == 0 else 0
        read = sum(frames for _, frames in place.reads) + len(place.frames) * place.own
        return fixed + read * layout.tokens

    def _mean(self, some: list[Passed]) -> PassCost:
        layers, rule, share = [Work()] * self.model.network.layers, Work(), 1 / len(some)
        for one in some:
            layers = [a + b for a, b in zip(layers, self.layers(one.place), strict=True)]
            rule += self.rule(one)
        return PassCost(tuple(work.times(share) for work in layers), rule.times(share))

    def layers(self, place: Place) -> list[Work]:
        """Products and attention of every layer in a pass."""
        network, new, keys = self.model.network, len(place.frames) * self.layout.tokens, self.keys(place)
        flops, values = network.layer_flops(new, keys), network.layer_values(new, keys)
        return [Work(f, v * self.itemsize) for f, v in zip(flops, values, strict=True)]

    def _made_once(self, new: int) -> tuple[Work, ...]:
        """What passes of a chunk of so many tokens have in common, of every layer."""
        network = self.model.network
        pairs = zip(network.once_flops(new), network.once_moved(new), strict=True)
        return tuple(Work(flops, values * self.itemsize) for flops, values in pairs)

    def rule(self, passed: Passed) -> Work:
        """What is done to one layer's bank besides, in frames' worth of keys, which have as many values as tokens
        have channels."""
        place, layout = passed.place, self.layout
        # The attention sink: from the keys as they are without positions to where they are read.
        turned = passed.turned + passed.moved * self.moving
        flops, moved = TURN * turned, 2 * turned
        if leaving := len(place.merges):
            # Of keys and values two are read and one is written. What of the keys turns with time is turned back, and
            # to where it is read, and is written once more.
            flops += (2 * TURN * self.moving + 2 * MERGE) * leaving
            moved += (6 + self.moving) * leaving
        if place.own or len(place.reads) > 1:
            # What is read is joined: keys and values, read and written.
            moved += 4 * self.keys(place) / layout.tokens
        if place.compares:
            # Keys and values are averaged, of the attention sink's frames and of the new ones, whose keys are turned
            # beside the bank for that, and copied.
            new = len(place.frames)
            flops += 2 * (place.compares + new)
            moved += 2 * (place.compares + new) + 2 * new
        choice = self.model.choice
        if place.recalls:
            moved += 2 * choice["recalled"]
        if place.selects:
            left, end = (slot + frames for slot, frames in (place.reads[-1], place.runs[-1][1:]))
            kept = left - layout.anchored
            # All that there is but the attention sink and the latest frames, whose queries and the recalled ones ask.
            candidates = end - layout.anchored - (kept - choice["chosen"])
            asking = choice["recalled"] + self.model.chunk_frames
            # Queries are added up, and that sum is multiplied with every candidate's key; then keys and values move.
            flops += asking + 2 * candidates
            moved += asking + candidates + 4 * kept
        frame = layout.tokens * self.model.network.dim
        return Work(flops * frame, moved * frame * self.itemsize)
