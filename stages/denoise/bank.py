"""Banks: the key/value history of one stream at one level, for the layers one worker holds.

Where a pass writes and what it reads is said by its place (`stages.denoise.history`); attention takes a view of that,
without copies, wherever it is one piece. Keys of the ring are stored rotated at their absolute position, and so are
those of fixed tokens, which never move; keys of the attention sink's frames are kept raw beside the buffer and rotated
into it where the position rule wants them. An adapter's history is a bank of the same slots with entries of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

import devices
from stages.denoise.layout import CHOICE, FIXED, TOKEN, Layout
from stages.denoise.rope import rotate

QUERIES, USES, QUEUE = "queries", "uses", "queue"
"""What a bank keeps to choose by, for each layer. A choice among tokens needs the latest queries, which are of heads as
keys are, and how often each token was chosen. A choice among slots needs a queue: how often a slot of those that take
turns was written, and behind it the attention-sink slots that are to be written over before them, the next one first,
each plus one, with zeros where none waits."""
OF_ALL_HEADS = {USES: torch.int32, QUEUE: torch.int64}
"""What of it is one number for all heads, and its type. It is zeros when a stream begins."""


class Bank:
    """Keys and values.

    Args:
        layout: slots.
        layers: layer indices held.
        heads, head_dim: of the network, or of an adapter.
        dtype, device: of the buffers.
        each: what has an entry.
        adapters: banks of the layers' adapters, by name.
        recalled, chosen: frames of which the latest queries are kept, and frames' worth of tokens that may be chosen by
            them; 0: nothing is chosen.
        waiting: attention-sink slots that may wait to be written over; 0: they stay.
    """

    def __init__(
        self,
        layout: Layout,
        layers: Iterable[int],
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        each: str = TOKEN,
        adapters: Mapping[str, Bank] | None = None,
        recalled: int = 0,
        chosen: int = 0,
        waiting: int = 0,
    ):
        self.layout, self.each, self.adapters = layout, each, dict(adapters or {})
        self.device = devices.of(device)
        self.written: set[int] = set()
        """Slots that hold something of the stream."""
        self.dirty: set[int] = set()
        """Those of them that were written since the bank was copied last."""
        self.copying: dict[int, devices.Mark] = {}
        """Slots of which copies may be under way, and when those are over."""
        self.begun = -1
        """The latest chunk of which a step began here."""
        self.views: dict[int, dict[str, Tensor]] = {}
        """Its memory by slot, as whoever copies slots names the pieces."""
        tokens, anchored, layers = layout.size, layout.anchored * layout.tokens, tuple(layers)

        def buffers(n: int) -> dict[int, Tensor]:
            return {i: torch.zeros(1, n, heads, head_dim, dtype=dtype, device=device) for i in layers}

        def numbers(name: str, n: int) -> dict[int, Tensor]:
            return {i: torch.zeros(n, dtype=OF_ALL_HEADS[name], device=device) for i in layers}

        self.keys, self.values, self.raw = buffers(tokens), buffers(tokens), buffers(anchored)
        self.choice: dict[str, dict[int, Tensor]] = {}
        """By name and layer; empty where nothing is chosen."""
        if chosen:
            self.choice = {QUERIES: buffers(recalled * layout.tokens), USES: numbers(USES, chosen * layout.tokens)}
        elif waiting:
            self.choice = {QUEUE: numbers(QUEUE, 1 + waiting)}
        self.placed: list[int | None] = [None] * layout.anchored
        """Position each attention-sink frame's keys are rotated to; None: not there yet."""

    @staticmethod
    def bytes_needed(
        layout: Layout, layers: int, heads: int, head_dim: int, dtype: torch.dtype, recalled: int = 0, chosen: int = 0,
        waiting: int = 0,
    ) -> int:  # fmt: skip
        """Size of a bank, before it exists."""
        tokens = 2 * layout.size + layout.anchored * layout.tokens
        tokens += recalled * layout.tokens if chosen else 0
        numbers = chosen * layout.tokens * OF_ALL_HEADS[USES].itemsize
        numbers += (1 + waiting) * OF_ALL_HEADS[QUEUE].itemsize if waiting else 0
        return layers * (tokens * heads * head_dim * dtype.itemsize + numbers)

    @property
    def nbytes(self) -> int:
        """Of the adapters' banks, too."""
        parts = (self.keys, self.values, self.raw, *self.choice.values())
        own = sum(t.nbytes for part in parts for t in part.values())
        return own + sum(bank.nbytes for bank in self.adapters.values())

    def clear(self) -> None:
        """Forget the stream that was in it: its memory stays, and nothing of it is read before it is written again."""
        for bank in self:
            bank.touch({CHOICE})  # which is zeroed here, behind copies that are under way
            bank.placed = [None] * bank.layout.anchored
            bank.written, bank.dirty, bank.begun = set(), set(), -1
            for name in bank.choice.keys() & OF_ALL_HEADS.keys():
                for numbers in bank.choice[name].values():
                    numbers.zero_()

    def __iter__(self) -> Iterator[Bank]:
        """This bank and those of the adapters."""
        yield self
        yield from self.adapters.values()

    def begin(self, chunk: int) -> bool:
        """A step of a chunk runs here; returns whether it is the first one."""
        begins, self.begun = chunk > self.begun, max(chunk, self.begun)
        return begins

    def touch(self, slots: set[int]) -> None:
        """Slots are written by what this thread's queue is given next, behind copies of them that are under way."""
        for mark in {id(m): m for slot in slots & self.copying.keys() if (m := self.copying.pop(slot))}.values():
            self.device.follow(mark)
        self.written |= slots
        self.dirty |= slots

    def sink_slots(self, count: int) -> set[int]:
        """The first slots of the attention sink, with what is fixed."""
        return {*range(count), *([FIXED] if self.layout.fixed else [])}

    def place(
        self, table: Callable[[Sequence[int]], Tensor], positions: Sequence[int], moving: int | None = None
    ) -> None:
        """Rotate the attention sink's keys to `positions`, in every layer; nothing to do where they are there.

        Args:
            table: rotation of the entries of frames at given positions.
            moving: channel pairs of a head, from the first one on, that turn with the position; None: all.
        """
        moved = [f for f, p in enumerate(positions) if self.placed[f] != p]
        if not moved:
            return
        n, first, last = self.layout.tokens, moved[0], moved[-1] + 1
        # What turns with rows and columns alone is there already, of frames that were placed before.
        pairs = None if None in self.placed[first:last] else moving
        turn, span = table(positions[first:last])[..., :pairs], self.layout.span(first, last - first)
        channels = 2 * turn.shape[-1]
        for layer, keys in self.keys.items():
            rotate(self.raw[layer][:, first * n : last * n, :, :channels], turn, out=keys[:, span, :, :channels])
        self.placed[: len(positions)] = positions

    def average(
        self,
        table: Callable[[Sequence[int]], Tensor],
        slots: Sequence[int],
        positions: Sequence[int],
        share: float,
        wanted: Sequence[int],
        moving: int | None = None,
    ) -> None:
        """Average frames into the attention sink's, frame by frame: sink = share * sink + (1 - share) * frame.

        Keys are averaged as they are without positions in time, so those of the frames are turned back, and turned to
        where they are read while they are at hand. What turns with rows and columns alone is averaged where it is read.

        Args:
            table: rotation of the entries of frames at given positions.
            slots, positions: of as many frames as the attention sink has of its own, all placed.
            share: that the attention sink keeps.
            wanted: positions of its frames then.
            moving: as `place` has it.
        """
        layout, first = self.layout, self.layout.reference
        self.touch(set(range(first, first + len(slots))))
        back, turn, n = table(positions).conj()[..., :moving], table(wanted)[..., :moving], layout.tokens
        span, channels = layout.span(first, len(slots)), 2 * turn.shape[-1]
        for layer, keys in self.keys.items():
            values = self.values[layer]
            leaving = (torch.cat([of[:, layout.span(slot, 1)] for slot in slots], 1) for of in (keys, values))
            k, v = next(leaving), next(leaving)
            raw = self.raw[layer][:, first * n : (first + len(slots)) * n, :, :channels]
            for sink, frame in (
                (raw, rotate(k[..., :channels], back)),
                (keys[:, span, :, channels:], k[..., channels:]),
                (values[:, span], v),
            ):
                sink.copy_(share * sink.float() + (1 - share) * frame.float())
            rotate(raw, turn, out=keys[:, span, :, :channels])
        self.placed[first : first + len(slots)] = wanted

    def copy_sink(self, other: Bank) -> None:
        """Take over the attention sink of another level's bank."""
        for own, its in zip(self, other, strict=True):
            span = slice(0, own.layout.span(0, own.layout.anchored).stop)
            own.touch(own.sink_slots(own.layout.anchored) & its.written)
            for layer in own.keys:
                own.raw[layer].copy_(its.raw[layer])
                own.keys[layer][:, span] = its.keys[layer][:, span]
                own.values[layer][:, span] = its.values[layer][:, span]
            own.placed = list(its.placed)

    def copy(self, other: Bank, slots: set[int]) -> None:
        """Take over slots of another level's bank, none of which is of the attention sink."""
        self.touch(slots)
        for span in (self.layout.span(slot, 1) for slot in sorted(slots)):
            for own, its in ((self.keys, other.keys), (self.values, other.values)):
                for layer, of in own.items():
                    of[:, span] = its[layer][:, span]

    def export(self) -> dict[str, Tensor]:
        """All content, in physical slot order, per layer: what `restore` needs on any other worker.

        `NAME` is of all layers, `NAME.LAYER` of one; these are the bank's own memory, not copies. Adapters' banks are
        exported alone.
        """
        placed = torch.tensor([ABSENT if p is None else p for p in self.placed], dtype=torch.int64)
        return {PLACED: placed} | {f"{name}.{i}": t for name, part in self._parts() for i, t in part.items()}

    def restore(self, content: dict[str, Tensor], chunk: int) -> None:
        """Take the content of an export that holds at least this bank's layers, and was made before `chunk`."""
        self.touch({*self.sink_slots(0), *range(self.layout.frames), *([CHOICE] if self.choice else [])})
        for name, part in self._parts():
            for i, t in part.items():
                t.copy_(content[f"{name}.{i}"])
        self.placed = [None if p == ABSENT else p for p in content[PLACED].tolist()]
        self.begun = chunk - 1

    def _parts(self) -> Iterator[tuple[str, dict[int, Tensor]]]:
        yield from (("keys", self.keys), ("values", self.values), ("raw", self.raw))
        yield from self.choice.items()


PLACED = "placed"
"""Name of the positions in an export."""
ABSENT = -(2**63)
"""Stands for no position there."""
