"""A pass shared by several denoisers that hold the same layers: which tokens and heads each of them computes.

Sequence parallelism as in DeepSpeed-Ulysses (arXiv 2309.14509). Each member has an equal run of tokens *of every
latent frame*, so all that is per frame or per token (modulation, sound, text, feed-forward) runs on its tokens as on a
smaller picture. Around self-attention tokens are exchanged for heads: there each member has all tokens and an equal
part of the heads, and so do its banks. An adapter sees its own place, or what there is one of for a latent frame, so
its banks hold each member's places, or all. History never travels; what does is in proportion to the chunk.

Only the layout is here. How members reach each other is an `Exchange`'s business, and comes from outside.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from stages.denoise.attention import History
from stages.denoise.layout import LATENT, PLACE


class Exchange(Protocol):
    """How members of a group hand tensors to each other. All members make the same calls in the same order."""

    rank: int
    size: int

    def all_to_all(self, x: Tensor) -> Tensor:
        """Contiguous [size, ...]: part i goes to member i. Returns the same shape: part i came from member i."""

    def gather(self, x: Tensor) -> Tensor | None:
        """Contiguous [...] of every member to [size, ...] on member 0; None on the others."""


class Share:
    """All tokens and all heads: a denoiser on its own."""

    parts, rank = 1, 0

    def take(self, x: Tensor, frames: int) -> Tensor:
        """Tokens [B, N, d] of `frames` frames to those computed here [B, N / parts, d]."""
        return x

    def gather(self, x: Tensor, frames: int) -> Tensor | None:
        """The members' results [B, N / parts, d] to [B, N, d]; None where another member has them."""
        return x

    def history(self, attend: History, frames: int) -> History:
        """`attend`, which sees all tokens, as self-attention over the tokens computed here."""
        return attend

    def all_heads(self, x: Tensor) -> Tensor:
        """Numbers [heads here, ...] to those of all heads [heads, ...], in order, on every member."""
        return x

    def whole(self, x: Tensor, each: str, frames: int) -> Tensor | None:
        """A bank's keys or values of every member to those of the whole bank; None where another member has them.

        Args:
            x: [B, entries, heads, w], as they are kept here.
            each: what has an entry (`stages.denoise.bank`).
            frames: that the entries are of.
        """
        return x

    def part(self, x: Tensor, each: str, frames: int) -> Tensor:
        """A whole bank's keys or values to those that are kept here."""
        return x


ALL = Share()


class Ulysses(Share):
    """One member's part, by its rank in the exchange.

    Heads and tokens per frame must be multiples of the exchange's size.
    """

    def __init__(self, exchange: Exchange):
        self.exchange, self.parts, self.rank = exchange, exchange.size, exchange.rank

    def take(self, x: Tensor, frames: int) -> Tensor:
        return x.unflatten(1, (frames, self.parts, -1))[:, :, self.exchange.rank].flatten(1, 2)

    def gather(self, x: Tensor, frames: int) -> Tensor | None:
        parts = self.exchange.gather(x.contiguous())
        return None if parts is None else _tokens(parts, frames)

    def history(self, attend: History, frames: int) -> History:
        def run(layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
            if adapter:
                # What it reads is of the tokens' own places, or of whole frames: each member has it.
                return attend(layer, q, k, v, adapter)
            batch, tokens, heads, width = q.shape
            out = q.new_empty(self.parts, 3, batch, tokens, heads // self.parts, width)
            for place, x in zip(out.unbind(1), (q, k, v), strict=True):
                place.copy_(x.unflatten(2, (self.parts, -1)).movedim(2, 0))
            # [parts, 3 B, own tokens, ...] of every member, joined to all tokens of our heads.
            whole = _tokens(self.exchange.all_to_all(out).flatten(1, 2), frames)
            y = attend(layer, *whole.unflatten(0, (3, batch)))
            back = y.unflatten(1, (frames, self.parts, -1)).movedim(2, 0).flatten(2, 3).contiguous()
            return self.exchange.all_to_all(back).movedim(0, 2).flatten(2, 3)

        return run

    def all_heads(self, x: Tensor) -> Tensor:
        return self.exchange.all_to_all(x.expand(self.parts, *x.shape).contiguous()).flatten(0, 1)

    def whole(self, x: Tensor, each: str, frames: int) -> Tensor | None:
        parts = self.exchange.gather(x.contiguous())
        return None if parts is None else joined(parts, each, frames)

    def part(self, x: Tensor, each: str, frames: int) -> Tensor:
        if each == LATENT or (each == PLACE and not frames):
            return x
        if each == PLACE:
            return x.unflatten(1, (frames, self.parts, -1))[:, :, self.exchange.rank].flatten(1, 2)
        return x.unflatten(2, (self.parts, -1))[:, :, self.exchange.rank]


def joined(parts: Tensor, each: str, frames: int) -> Tensor:
    """A bank's keys or values of every member [parts, B, entries, heads, w], in order, to those of the whole bank.

    Args:
        each: what has an entry (`stages.denoise.bank`).
        frames: that the entries are of.
    """
    # Of no frames at all, which a bank without an attention sink keeps raw, there are no places to join.
    if each == LATENT or (each == PLACE and not frames):
        return parts[0]
    if each == PLACE:
        return _tokens(parts, frames)
    return parts.movedim(0, 2).flatten(2, 3).contiguous()


def _tokens(parts: Tensor, frames: int) -> Tensor:
    """[parts, B, f n / parts, ...] of every member to [B, f n, ...], frame by frame."""
    return parts.unflatten(2, (frames, -1)).movedim(0, 2).flatten(1, 3)
