"""What attention does in one pass over a bank: write the pass's frames, choose where the rule does, read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stages.denoise.attention import Attend
from stages.denoise.bank import QUERIES, QUEUE, USES, Bank
from stages.denoise.history import Place
from stages.denoise.layout import LATENT
from stages.denoise.rope import rotate

AllHeads = Callable[[Tensor], Tensor]
"""Numbers [heads here, ...] to those of all heads [heads, ...], in order."""


class BankPass:
    """One pass.

    Args:
        bank: read and written.
        table: rotation of this pass's entries.
        place: where its frames go, and what it reads.
        core: the attention back end.
        fixed: tokens that are no whole frame and come before the frames, in a prefill.
        adapters: the same over the adapters' banks.
    """

    def __init__(
        self,
        bank: Bank,
        table: Tensor,
        place: Place,
        core: Attend,
        fixed: int = 0,
        adapters: Mapping[str, AdapterPass] | None = None,
    ):
        self.bank, self.table, self.core, self.adapters = bank, table, core, adapters or {}
        self.own, layout, n = place.own, bank.layout, bank.layout.tokens
        positions = place.at
        spans = [layout.span(*slots) for slots in place.reads]
        # What is fixed is before the first slot, and read with it.
        self.reads = [slice(0, span.stop) if span.start == layout.fixed else span for span in spans]
        self.writes: list[tuple[slice, Tensor, slice, slice]] = []
        """Per run: its tokens in the pass, their rotation, where they go, and which raw keys the first of them are."""
        if fixed:
            self.writes.append((slice(0, fixed), table[:fixed], slice(0, fixed), slice(0, 0)))
        for offset, slot, count in place.runs:
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
        keys, values = self._read(layer, q, keys, values)
        if self.own:
            keys, values = torch.cat([keys, rotate(k, self.table, out=k)], 1), torch.cat([values, v], 1)
        return self.core(q, keys, values, None)

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

    def _read(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What of a bank the queries see: a view, where it is one piece."""
        if len(self.reads) == 1:
            return keys[:, self.reads[0]], values[:, self.reads[0]]
        pieces = self.reads or [slice(0, 0)]
        return tuple(torch.cat([of[:, span] for span in pieces], 1) for of in (keys, values))


class RecallingPass(BankPass):
    """The same, and keeps its latest queries."""

    def _read(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.bank.choice[QUERIES][layer]
        kept.copy_(q[:, q.shape[1] - kept.shape[1] :])
        return super()._read(layer, q, keys, values)


class SelectingPass(BankPass):
    """The first pass of a chunk that does not fit: what it wrote is behind all else, and of the tokens between the
    attention sink and the latest frames those stay that the latest queries ask for most.

    A token's score is the sum of its products with the latest queries, over all heads, which choose together. What was
    chosen as often as the rule allows is dropped.

    Args:
        reuse: how often that is; None: for ever.
        all_heads: joins scores where processes share the heads.
    """

    def __init__(self, *args, reuse: int | None, all_heads: AllHeads, **named):
        super().__init__(*args, **named)
        self.reuse, self.all_heads = reuse, all_heads
        layout = self.bank.layout
        self.sink = layout.span(0, layout.anchored).stop
        self.end = self.writes[-1][2].stop

    def _read(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        queries, uses = (self.bank.choice[name][layer] for name in (QUERIES, USES))
        chosen, left = len(uses), self.reads[0].stop
        recent = slice(self.end - (left - self.sink - chosen), self.end)
        candidates = slice(self.sink, recent.start)
        best, uses_of = self._best(torch.cat([queries, q], 1), keys[:, candidates], uses)
        uses.copy_(uses_of[best] + 1)
        for of in (keys, values):
            of[:, self.sink : self.sink + chosen] = of[:, candidates].index_select(1, best)
            of[:, self.sink + chosen : left] = of[:, recent].clone()
        return super()._read(layer, q, keys, values)

    def _best(self, queries: Tensor, keys: Tensor, uses: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the tokens that stay, in order, and how often each candidate was chosen before."""
        asked = queries.float().sum(1, keepdim=True)
        scores = (keys.float() * asked).sum(-1)[0].transpose(0, 1).contiguous()
        scores = self.all_heads(scores).sum(0)
        uses_of = torch.nn.functional.pad(uses, (0, keys.shape[1] - len(uses)))
        if self.reuse is not None:
            scores = scores.masked_fill(uses_of >= self.reuse, -torch.inf)
        return scores.topk(len(uses)).indices.sort().values, uses_of


class AdaptingPass(BankPass):
    """A pass of one frame, which is compared with the attention sink before it is written, as StreamDiffusionV2's code
    does it. The frame that is least like it, if that is too little, goes to the head of the queue of slots: a full bank
    has it written over by this very pass, one that still fills by the first frame that finds no room.

    Two frames are as like as the mean of two cosines, that of their keys and that of their values, each averaged over
    the frame's tokens, with all heads in one vector. What holds no frame is as like as zeros are: 0.

    Args:
        sinks: slots of the attention sink, whether they hold a frame or not.
        threshold: what is less like than this is too little.
        kept: slots behind which all others take turns.
        all_heads: joins sums where processes share the heads.
    """

    def __init__(
        self, bank: Bank, table: Tensor, place: Place, core: Attend, *, sinks: int, threshold: float, kept: int,
        all_heads: AllHeads, **named,
    ):  # fmt: skip
        super().__init__(bank, table, place, core, **named)
        self.place, self.sinks, self.threshold, self.kept, self.all_heads = place, sinks, threshold, kept, all_heads
        self.within = torch.arange(bank.layout.tokens, device=table.device)

    def _written(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.bank.keys[layer], self.bank.values[layer]
        queue, new = self.bank.choice[QUEUE][layer], rotate(k, self.table, out=torch.empty_like(k))
        self._compare(queue[1:], ((keys, new), (values, v)))
        if self.writes:
            return super()._written(layer, k, v)
        layout = self.bank.layout
        at = layout.fixed + self._next(queue[:1], queue[1:], layout.ring - self.kept) * layout.tokens + self.within
        return keys.index_copy_(1, at, new), values.index_copy_(1, at, v)

    def _compare(self, waiting: Tensor, pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
        """Have the attention-sink frame that is least like the new one wait before all others, if it is to.

        What has waited longest is forgotten where there is no room for it.
        """
        held = self.place.compares
        likeness = torch.nn.functional.pad(self._likeness(held, pairs), (0, self.sinks - held))
        least = likeness.argmin()
        before = torch.cat([least[None] + 1, waiting[:-1]])
        waiting.copy_(torch.where(likeness.amin() < self.threshold, before, waiting))

    def _likeness(self, held: int, pairs: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        """[held] of (all in the bank, the new frame's)."""
        span, sums = self.bank.layout.span(0, held), []
        for of, new in pairs:
            sink = of[0, span].unflatten(0, (held, -1)).mean(1, dtype=torch.float32)
            own = new[0].mean(0, dtype=torch.float32).expand_as(sink)
            sums.append(torch.stack([sink * own, sink * sink, own * own]).sum(-1))
        of_heads = torch.stack(sums).movedim(-1, 0).contiguous()
        product, *squares = self.all_heads(of_heads).sum(0).unbind(1)
        a, b = (square.sqrt().clamp_min(1e-8) for square in squares)
        return (product / (a * b)).mean(0)

    def _next(self, turn: Tensor, waiting: Tensor, rolling: int) -> Tensor:
        """The slot at the head of the queue [1], which may then leave it."""
        first, none = waiting[:1], waiting[:1] == 0
        slot = torch.where(none, self.kept + turn, first - 1)
        if self.place.advances:
            turn.copy_((turn + none) % rolling)
            waiting.copy_(torch.cat([waiting[1:], torch.zeros_like(first)]))
        return slot


class AdapterPass(BankPass):
    """The same over an adapter's bank, whose entries are fewer than the tokens, or see only their own place."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
        """q [B, f n, heads, head_dim], by k and v of as many places, or of f latent frames."""
        keys, values = self._written(layer, k, v)
        keys, values = self._read(layer, q, keys, values)
        n = self.bank.layout.tokens
        q = rotate(q, self.table.repeat_interleave(q.shape[1] // len(self.table), 0))
        if self.bank.each == LATENT:
            return self.core(q, keys, values, None)
        # Every place is a sequence of its own, along time.
        parts = (x.unflatten(1, (-1, n)).transpose(1, 2).flatten(0, 1) for x in (q, keys, values))
        return self.core(*parts, None).unflatten(0, (-1, n)).transpose(1, 2).flatten(1, 2)
