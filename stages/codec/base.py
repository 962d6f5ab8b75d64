"""What every codec looks like to the rest of Everframe.

An encoder and a decoder are separate modules, so that a worker can hold one without the other. Both are
stateless networks: everything a stream remembers between chunks is in a `CodecState` that the caller keeps,
one per stream, so any number of streams can share one network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
"""Of every codec: video pixels per latent pixel, video frames per latent frame."""


@dataclass
class CodecState:
    """What one stream carries from chunk to chunk through one encoder or decoder.

    Attributes:
        cache: per stateful layer, the tail of its input that the next call needs; None before the first call.
        steps: how many latent frames have passed.
    """

    cache: list[Tensor | None] = field(default_factory=list)
    steps: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, constant once every layer has seen its first input."""
        return sum(t.nbytes for t in self.cache if t is not None)


class Encoder(Protocol):
    """Pixels to latents, causally."""

    channels: int
    temporal_stride: int
    spatial_stride: int

    def start(self) -> CodecState:
        """A fresh stream."""
        ...

    def __call__(self, frames: Tensor, state: CodecState) -> Tensor:
        """[B, 3, n, H, W] in [-1, 1] to normalised latents [B, channels, m, H / 8, W / 8], advancing `state`: tensors
        in its cache are replaced, never written in, so that they can be kept as they are."""
        ...


class Decoder(Protocol):
    """Latents to pixels, chunk by chunk, each chunk final as soon as it is returned."""

    channels: int
    temporal_stride: int
    spatial_stride: int

    def start(self) -> CodecState:
        """A fresh, unprimed stream. Priming is decoding a few latents first and dropping what comes out."""
        ...

    def __call__(self, latents: Tensor, state: CodecState) -> Tensor:
        """Normalised latents [B, channels, m, h, w] to frames [B, 3, n, 8 h, 8 w] in [-1, 1], advancing `state`."""
        ...

    def frames(self, latents: int, first: bool) -> int:
        """How many video frames `latents` latent frames decode to, at the start of a stream or later."""
        ...


def parameter_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
