"""The diffusion transformer, over any range of its layers; families build on it.

Single-device code: it knows neither ranks nor history. A range [lo, hi) holds the layers of that range, the
patch embedding if lo is 0 and the head if hi is the last, so that a range can live alone; every range holds
the (small) time and text embeddings its layers are driven by. Module names give the published keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import devices
from stages.denoise.attention import Attend, History, KeysValues
from stages.denoise.network import Network, Take
from stages.denoise.rope import Rope
from stages.dit.layers import NOTHING, Inside, Layer, Modulation, modulate, per_token
from stages.dit.patches import embed, unpatch
from stages.dit.sizes import LayerSizes
from stages.inputs import REFERENCE, Given

NOISY, REFERRED, MOTION = range(3)
"""Types of tokens."""


@dataclass
class TimeTerms:
    """What time does to the network: one set of terms per layer, and (shift, 1 + scale) of the head.

    Without terms of the head there is no head: nobody wants the velocity of a prefill.
    """

    layers: dict[int, Modulation]
    head: tuple[Tensor, Tensor] | tuple[()]


@dataclass
class Constants:
    """What does not change of a step.

    Attributes:
        embeddings: of its timestep, from `Transformer.time_embeddings`.
        terms: made of them.
    """

    embeddings: tuple[Tensor, Tensor]
    terms: TimeTerms


@dataclass
class Drive:
    """Everything that drives a forward besides the tokens themselves.

    Attributes:
        time: from `Transformer.time_terms`.
        context: per layer, keys and values of cross-attention, from `Transformer.states`.
        given: inputs of the chunk, by name.
    """

    time: TimeTerms
    context: dict[int, KeysValues]
    given: Given = field(default_factory=dict)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps [...] to float32 [..., width]: cosines, then sines, of t * 10000^(-i / (width / 2)), in float64."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1).float()


class Transformer(Network):
    """A range of layers of the transformer, with the face of `stages.denoise.network.Network`.

    Args:
        config: sizes of the whole network.
        layers: the layers held; None: all.
        attention: name of the attention back end.
    """

    typed: ClassVar[bool] = False
    """Whether tokens of different types are told apart by learned embeddings; a family says so."""
    layer: ClassVar[type[Layer]] = Layer
    """What layers are; likewise."""

    def __init__(self, config: LayerSizes, layers: range | None = None, attention: str = "sdpa"):
        super().__init__(config, layers, attention)
        dim = config.dim
        self.embed_context(config)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleDict(
            {str(i): self.layer(i, dim, config.ffn_dim, config.heads, config.eps) for i in self.layers}
        )
        if self.first:
            entering = config.in_channels + sum(config.beside.values())
            self.patch_embedding = nn.Conv3d(entering, dim, tuple(config.patch), tuple(config.patch))
            if self.typed:
                self.trainable_cond_mask = nn.Embedding(3, dim)
        if self.last:
            self.head = Head(dim, math.prod(config.patch) * config.out_channels, config.eps)

    def embed_context(self, config: LayerSizes) -> None:
        """Make what cross-attention's rows come through, for `states`: text, unless a family says otherwise."""
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.time_projection[1].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.time_projection[1].weight.device

    # -- preparing ----------------------------------------------------------------------------------------------------

    def fuse(self) -> Self:
        """Prepare for inference, once the weights are in place: q, k and v become one matrix product."""
        for layer in self.blocks.values():
            layer.fuse()
        return self

    def quantise(self, kind: str) -> Self:
        """Replace large products by 8-bit ones; raises UserError where the device has none."""
        from stages.dit import fp8  # knows this module

        return fp8.quantise(self, kind)

    def compile(self, compiled: Any) -> Self:
        """Use compiled regions (`compiled` makes one of a function) in place of those between attentions."""
        for layer in self.blocks.values():
            layer.regions = layer.regions.compiled(compiled)
        return self

    def timed(self) -> Iterable[tuple[str, nn.Module]]:
        yield from ((f"layer{i}", self.blocks[str(i)]) for i in self.layers)
        if self.last:
            yield "last", self.head

    # -- what drives --------------------------------------------------------------------------------------------------

    def time_embeddings(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B or 1, f or 1] (0..1000) to [.., f, d] and its projection [.., f, 6, d], float32 throughout."""
        first, _, second = self.time_embedding
        e = _wide(second, F.silu(_wide(first, sinusoid(timesteps.to(self.device), self.config.freq_dim))))
        return e, _wide(self.time_projection[1], F.silu(e)).unflatten(-1, (6, -1))

    def time_terms(self, embeddings: tuple[Tensor, Tensor]) -> TimeTerms:
        """Terms of every layer held."""
        e, e6 = embeddings
        head = self.head.terms(e) if self.last else ()
        return TimeTerms({i: self.blocks[str(i)].modulated(e6) for i in self.layers}, head)

    def constants(self, timestep: Tensor) -> Constants:
        """What does not change of a step at a timestep [1, 1]."""
        embeddings = self.time_embeddings(timestep)
        return Constants(embeddings, self.time_terms(embeddings))

    def states(self, epoch: Given) -> dict[int, KeysValues]:
        """What a prompt's inputs become, once per epoch."""
        return self.text_states(epoch["text"])

    def text_states(self, context: Tensor) -> dict[int, KeysValues]:
        """Text rows [B, L <= text_tokens, text_dim] to keys and values per layer.

        Missing rows are zeros and take part: the published models attend to them.
        """
        here = devices.of(self.device).upload(context).to(self.dtype)
        rows = F.pad(here, (0, 0, 0, self.config.text_tokens - context.shape[1]))
        return self.context(self.text_embedding(rows))

    def context(self, rows: Tensor) -> dict[int, KeysValues]:
        """Embedded rows [B, M, d] to keys and values of cross-attention, per layer."""
        return {i: self.blocks[str(i)].cross_attn.keys_values(rows) for i in self.layers}

    def drive(
        self, constants: Constants, states: dict[int, KeysValues], given: Given, take: Take, leaves: bool = True
    ) -> Drive:
        """What drives one pass; `leaves`: whether its output is wanted, or only what it writes."""
        time = constants.terms
        return Drive(time if leaves else TimeTerms(time.layers, ()), states, given)

    # -- a pass -------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, drive: Drive, attend: History, shape: torch.Size | None = None) -> Tensor:
        """Latents (or, for a later range, hidden states) to velocity (or, for an earlier range, hidden states).

        Args:
            x: [B, C, f, h, w] if this range starts the network, else [B, N, d].
            drive: time, text and what was given.
            attend: what self-attention does with q, k and v of each layer.
            shape: the latents' shape, for a range that ends the network without starting it.
        """
        shape = x.shape if self.first else shape
        return self.leave(self.through(self.enter(x, drive.given), drive, attend), shape)

    def enter(self, x: Tensor, given: Given) -> Tensor:
        """What `through` takes: tokens [B, N, d] of latents [B, C, f, h, w], frame by frame, row by row; hidden states,
        which later ranges take, are that already."""
        if not self.first:
            return x
        beside = (given[name].to(x) for name in self.config.beside)
        return self.tokens(torch.cat([x, *beside], 1) if self.config.beside else x, NOISY)

    def enter_sink(self, sink: Given) -> Tensor:
        """Tokens of the attention sink's inputs, of which the reference is a frame [B, C, 1, h, w].

        Tokens that are no whole frame come first.
        """
        return self.tokens(sink[REFERENCE], REFERRED)

    def fixed_table(self, rope: Rope) -> Tensor | None:
        """Rotation of the attention sink's tokens that never move; None: there are none."""
        return None

    def tokens(self, x: Tensor, kind: int) -> Tensor:
        """Latents to tokens of a type."""
        return self.of_type(embed(x, self.patch_embedding), kind)

    def of_type(self, x: Tensor, kind: int) -> Tensor:
        """Tokens with the embedding of their type, where the family has types."""
        return x + self.trainable_cond_mask.weight[kind] if self.typed else x

    def through(self, x: Tensor, drive: Drive, attend: History) -> Tensor:
        """From tokens or hidden states [B, N, d] to hidden states, or to patches after the last layer.

        Only `attend` lets tokens see each other, so any tokens will do, as many of each frame.
        """
        core = self.core
        for i, layer in zip(self.layers, self.blocks.values(), strict=True):
            x = layer(x, drive.time.layers[i], drive.context[i], attend, core, self.inside(i, drive.given, attend))
            x = self.after(i, x, drive.given, core)
        return self.head(x, drive.time.head) if drive.time.head else x

    def inside(self, layer: int, given: Given, attend: History) -> Inside:
        """What a family puts into a layer."""
        return NOTHING

    def after(self, layer: int, x: Tensor, given: Given, core: Attend) -> Tensor:
        """What a family puts behind a layer."""
        return x

    def leave(self, x: Tensor, shape: torch.Size) -> Tensor:
        """What `through` gives, as latents of `shape` where this range ends the network."""
        return unpatch(x, self.config.patch, shape) if self.last else x


def _wide(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32, whatever its parameters are kept in; a sixth at a time, so that no large copy is."""
    parts = 1 if linear.weight.dtype == torch.float32 else 6
    pairs = zip(linear.weight.chunk(parts), linear.bias.chunk(parts), strict=True)
    return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in pairs], -1)


class Head(nn.Module):
    """Modulated LayerNorm and projection to patches."""

    def __init__(self, dim: int, out: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))
        nn.init.normal_(self.modulation, std=dim**-0.5)

    def terms(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, 1 + scale), as `per_token` shapes them, from unprojected time embeddings [.., f, d]."""
        shift, scale = (self.modulation.float() + e.unsqueeze(-2)).unbind(-2)
        return per_token(shift), per_token(1 + scale)

    def forward(self, x: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, d] to patches [B, N, patch * C]."""
        return self.head(modulate(x.float(), *terms, self.eps).to(x.dtype))
