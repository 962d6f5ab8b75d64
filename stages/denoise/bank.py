"""Banks: the key/value history of one stream at one level, `[attention sink | ring]` in one buffer per layer.

The attention sink is a family's fixed tokens and the reference frames (if the model has any) followed by the first
`sink` generated frames; the ring holds the latest `ring` generated frames. Where a frame goes is a pure function of
its index, so writing the same chunk twice (its next denoising step, its commit) overwrites the same slots and evicts
nothing, and no counter needs to be kept. What a chunk may read is always a prefix of the buffer: attention
takes a view of it, without copies. Keys of the ring are stored rotated at their absolute position, and so are those of
fixed tokens, which never move; keys of the attention sink's frames are kept raw beside the buffer and rotated into it
where the position rule wants them. An adapter's history is a bank of the same slots with entries of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import devices
from conf.schema import Adapter, ModelConfig, SinkShift
from stages.denoise.attention import Attend
from stages.denoise.rope import rotate

TOKEN, PLACE, LATENT = "token", "place", "latent"
"""What has an entry in a bank: every token, whose heads the processes of a worker share; every place, which they share;
every latent frame, of which each process has all."""
FIXED = -1
"""The slot of the fixed tokens, which come before all others."""


@dataclass(frozen=True)
class Layout:
    """Where a bank keeps what, in latent frames; only fixed tokens, which come first, are no whole frames.

    Attributes:
        tokens: tokens (or an adapter's entries) of a latent frame.
        reference, sink: attention-sink frames that come from a reference / from the first generated frames.
        ring: latest generated frames kept, the current chunk included.
        fixed: tokens of the attention sink that never move.
    """

    tokens: int
    reference: int
    sink: int
    ring: int
    fixed: int = 0

    @staticmethod
    def of(model: ModelConfig, tokens: int) -> Layout:
        """Of the tokens' banks, where a latent frame has `tokens`."""
        fixed = model.network.fixed(tokens)
        return Layout(tokens, int(model.reference), model.sink_frames, model.ring_frames, fixed)

    @staticmethod
    def of_adapter(model: ModelConfig, adapter: Adapter, tokens: int) -> Layout:
        """Of an adapter's banks, which hold generated frames only, where a latent frame has `tokens` here."""
        return Layout(tokens if adapter.each == PLACE else 1, 0, model.sink_frames, model.ring_frames)

    @property
    def anchored(self) -> int:
        """Frames of the attention sink."""
        return self.reference + self.sink

    @property
    def frames(self) -> int:
        return self.anchored + self.ring

    @property
    def size(self) -> int:
        """Tokens of a bank."""
        return self.span(0, self.frames).stop

    def span(self, slot: int, count: int) -> slice:
        """The tokens of `count` slots."""
        start = self.fixed + slot * self.tokens
        return slice(start, start + count * self.tokens)

    def slot(self, frame: int) -> int:
        """The slot of generated frame `frame`."""
        return self.reference + frame if frame < self.sink else self.anchored + (frame - self.sink) % self.ring

    def slots(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """Contiguous runs (offset in the chunk, slot, length) that hold generated frames first .. first + count - 1."""
        runs: list[tuple[int, int, int]] = []
        for offset in range(count):
            slot = self.slot(first + offset)
            if runs and runs[-1][1] + runs[-1][2] == slot:
                runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
            else:
                runs.append((offset, slot, 1))
        return runs

    def window_start(self, end: int) -> int:
        """The oldest generated frame in the ring once frames before `end` are written."""
        return max(self.sink, end - self.ring)

    def visible(self, end: int) -> int:
        """Slots that hold frames once generated frames before `end` are written: always a prefix."""
        return self.reference + min(end, self.sink) + min(max(end - self.sink, 0), self.ring)

    def sink_positions(self, rule: str, first: int, count: int, shift: SinkShift, distance: int) -> range:
        """Temporal positions of the attention-sink frames that exist when the chunk at `first` reads them.

        `abs`: where they were (the reference just before frame 0). `slot`: just before the oldest frame of the
        window, which is StreamingLLM's numbering by slot up to a common offset. `sink_shift` (arXiv 2512.04677):
        start + max(0, first - (start - distance)), i.e. at `start`, later `distance` ahead of the chunk.
        """
        existing = self.reference + min(self.sink, first)
        if rule == "abs" or first < self.sink:
            start = -self.reference
        elif rule == "slot":
            start = self.window_start(first + count) - existing
        else:
            start = shift.start + max(0, first - (shift.start - distance))
        return range(start, start + existing)


class Bank:
    """Keys and values of one stream at one level, for the layers one worker holds.

    Args:
        layout: slots.
        layers: layer indices held.
        heads, head_dim: of the network, or of an adapter.
        dtype, device: of the buffers.
        each: what has an entry.
        adapters: banks of the layers' adapters, by name.
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
    ):
        self.layout, self.each, self.adapters = layout, each, dict(adapters or {})
        self.device = devices.of(device)
        self.written: set[int] = set()
        """Slots that hold something of the stream."""
        self.dirty: set[int] = set()
        """Those of them that were written since the bank was copied last."""
        self.copying: dict[int, devices.Mark] = {}
        """Slots of which copies may be under way, and when those are over."""
        tokens, anchored, layers = layout.size, layout.anchored * layout.tokens, tuple(layers)

        def buffers(n: int) -> dict[int, Tensor]:
            return {i: torch.zeros(1, n, heads, head_dim, dtype=dtype, device=device) for i in layers}

        self.keys, self.values, self.raw = buffers(tokens), buffers(tokens), buffers(anchored)
        self.placed: list[int | None] = [None] * layout.anchored
        """Position each attention-sink frame's keys are rotated to; None: not there yet."""

    @staticmethod
    def bytes_needed(layout: Layout, layers: int, heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Size of a bank, before it exists."""
        tokens = 2 * layout.size + layout.anchored * layout.tokens
        return tokens * layers * heads * head_dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of the adapters' banks, too."""
        own = sum(t.nbytes for part in (self.keys, self.values, self.raw) for t in part.values())
        return own + sum(bank.nbytes for bank in self.adapters.values())

    def clear(self) -> None:
        """Forget the stream that was in it: its memory stays, and nothing of it is read before it is written again."""
        for bank in self:
            bank.placed = [None] * bank.layout.anchored
            bank.written, bank.dirty = set(), set()

    def __iter__(self) -> Iterator[Bank]:
        """This bank and those of the adapters."""
        yield self
        yield from self.adapters.values()

    def writing(self, frames: range) -> None:
        """The slots of these generated frames, here and in the adapters' banks, are written by what comes next."""
        for bank in self:
            bank.touch({bank.layout.slot(frame) for frame in frames})

    def touch(self, slots: set[int]) -> None:
        """Slots are written by what this thread's queue is given next, behind copies of them that are under way."""
        for mark in {id(m): m for slot in slots & self.copying.keys() if (m := self.copying.pop(slot))}.values():
            self.device.follow(mark)
        self.written |= slots
        self.dirty |= slots

    def sink_slots(self, count: int) -> set[int]:
        """The first slots of the attention sink, with what is fixed."""
        return {*range(count), *([FIXED] if self.layout.fixed else [])}

    def place(self, table: Callable[[Sequence[int]], Tensor], positions: Sequence[int]) -> None:
        """Rotate the attention sink's keys to `positions`, in every layer; nothing to do where they are there.

        Args:
            table: rotation of the entries of frames at given positions.
        """
        moved = [f for f, p in enumerate(positions) if self.placed[f] != p]
        if not moved:
            return
        n, first, last = self.layout.tokens, moved[0], moved[-1] + 1
        turn, span = table(positions[first:last]), self.layout.span(first, last - first)
        for layer, keys in self.keys.items():
            rotate(self.raw[layer][:, first * n : last * n], turn, out=keys[:, span])
        self.placed[: len(positions)] = positions

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

    def export(self) -> dict[str, Tensor]:
        """All content, in physical slot order, per layer: what `restore` needs on any other worker.

        `NAME` is of all layers, `NAME.LAYER` of one; these are the bank's own memory, not copies. Adapters' banks are
        exported alone.
        """
        placed = torch.tensor([ABSENT if p is None else p for p in self.placed], dtype=torch.int64)
        parts = (("keys", self.keys), ("values", self.values), ("raw", self.raw))
        return {PLACED: placed} | {f"{name}.{i}": t for name, part in parts for i, t in part.items()}

    def restore(self, content: dict[str, Tensor]) -> None:
        """Take the content of an export that holds at least this bank's layers."""
        self.touch({*self.sink_slots(0), *range(self.layout.frames)})
        for name, part in (("keys", self.keys), ("values", self.values), ("raw", self.raw)):
            for i, t in part.items():
                t.copy_(content[f"{name}.{i}"])
        self.placed = [None if p == ABSENT else p for p in content[PLACED].tolist()]


PLACED = "placed"
"""Name of the positions in an export."""
ABSENT = -(2**63)
"""Stands for no position there."""


class BankPass:
    """What attention does during one pass over a bank: write this pass's frames, read the visible prefix.

    Args:
        bank: read and written.
        table: rotation of this pass's entries.
        positions: temporal position of each of its frames.
        runs: where its frames go, from `Layout.slots`.
        visible: slots read, from `Layout.visible`.
        core: the attention back end.
        fixed: tokens that are no whole frame and come before the frames, in a prefill.
        adapters: the same over the adapters' banks.
    """

    def __init__(
        self,
        bank: Bank,
        table: Tensor,
        positions: Sequence[int],
        runs: Sequence[tuple[int, int, int]],
        visible: int,
        core: Attend,
        fixed: int = 0,
        adapters: Mapping[str, AdapterPass] | None = None,
    ):
        self.bank, self.table, self.core, self.adapters = bank, table, core, adapters or {}
        layout, n = bank.layout, bank.layout.tokens
        self.read = slice(layout.span(0, visible).stop)
        self.writes: list[tuple[slice, Tensor, slice, slice]] = []
        """Per run: its tokens in the pass, their rotation, where they go, and which raw keys the first of them are."""
        if fixed:
            self.writes.append((slice(0, fixed), table[:fixed], slice(0, fixed), slice(0, 0)))
        for offset, slot, count in runs:
            source = slice(fixed + offset * n, fixed + (offset + count) * n)
            kept = max(0, min(count, layout.anchored - slot))
            raw = slice(slot * n, (slot + kept) * n)
            self.writes.append((source, table[source], layout.span(slot, count), raw))
            bank.placed[slot : slot + kept] = positions[offset : offset + kept]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
        """Attention as `stages.denoise.attention.History` says."""
        if adapter:
            return self.adapters[adapter](layer, q, k, v)
        keys, values = self._written(layer, k, v)
        q = rotate(q, self.table, out=q)
        return self.core(q, keys[:, self.read], values[:, self.read], None)

    def _written(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, with those of this pass among them."""
        keys, values = self.bank.keys[layer], self.bank.values[layer]
        for source, table, target, raw in self.writes:
            new = k[:, source]
            rotate(new, table, out=keys[:, target])
            values[:, target] = v[:, source]
            if kept := raw.stop - raw.start:
                self.bank.raw[layer][:, raw] = new[:, :kept]
        return keys, values


class AdapterPass(BankPass):
    """The same over an adapter's bank, whose entries are fewer than the tokens, or see only their own place."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
        """q [B, f n, heads, head_dim], by k and v of as many places, or of f latent frames."""
        keys, values = self._written(layer, k, v)
        keys, values, n = keys[:, self.read], values[:, self.read], self.bank.layout.tokens
        q = rotate(q, self.table.repeat_interleave(q.shape[1] // len(self.table), 0))
        if self.bank.each == LATENT:
            return self.core(q, keys, values, None)
        # Every place is a sequence of its own, along time.
        parts = (x.unflatten(1, (-1, n)).transpose(1, 2).flatten(0, 1) for x in (q, keys, values))
        return self.core(*parts, None).unflatten(0, (-1, n)).transpose(1, 2).flatten(1, 2)
