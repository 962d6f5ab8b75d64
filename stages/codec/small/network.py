"""The pocket models' codec: a small causal convolutional encoder and decoder, 4x in time and 8x8 in space.

Almost all of it is two-dimensional convolution, frame by frame. Time enters in two places: the network's rate
changes by folding frames into channels (encoder) and channels into frames (decoder), and a few `Memory` blocks see
some channels of their own input one time step earlier. Those few features are everything a stream remembers, so
the state is small, its size never changes, and a chunk is final as soon as it leaves.

Every latent frame is four video frames, the first of a stream as well: there is no image-like first latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.codec.base import SPATIAL_STRIDE, TEMPORAL_STRIDE, CodecState
from stages.codec.small.layers import Grow, Memory, Shrink, blocks


@dataclass(frozen=True)
class SmallConfig:
    """Sizes. Widths and depths run from the latent grid (1/8) over 1/4 to 1/2 of the picture.

    Attributes:
        channels: latent channels.
        encoder, decoder: channels at 1/8 (one time step per latent), 1/4 (two) and 1/2 resolution (four).
        encoder_blocks, decoder_blocks: residual blocks at each of the three; the first at 1/8 and 1/4 has memory.
        memory: share of a block's channels that it sees from the time step before.

    Eight times a width is a multiple of the next deeper one, in the encoder and in the decoder.
    """

    channels: int = 16
    encoder: tuple[int, int, int] = (192, 96, 48)
    decoder: tuple[int, int, int] = (192, 96, 48)
    encoder_blocks: tuple[int, int, int] = (3, 2, 1)
    decoder_blocks: tuple[int, int, int] = (3, 2, 1)
    memory: float = 0.25


class _Half(nn.Module):
    """What encoder and decoder share: the walk over layers that keeps each memory block's tail in the state."""

    temporal_stride = TEMPORAL_STRIDE
    spatial_stride = SPATIAL_STRIDE

    def __init__(self, config: SmallConfig, layers: list[nn.Module]):
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.layers = nn.ModuleList(layers)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        # Convolutions on CPU and on tensor cores both run fastest with channels innermost.
        self.to(memory_format=torch.channels_last)

    def start(self) -> CodecState:
        """A fresh stream."""
        return CodecState(cache=[None for layer in self.layers if isinstance(layer, Memory)])

    def _walk(self, x: Tensor, batch: int, state: CodecState) -> Tensor:
        slot = 0
        for layer in self.layers:
            if isinstance(layer, Memory):
                x, state.cache[slot] = layer.remember(x, batch, state.cache[slot])
                slot += 1
            else:
                x = layer(x)
        return x

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as [1, channels, 1, 1, 1]."""
        return self.mean.view(1, -1, 1, 1, 1), self.std.view(1, -1, 1, 1, 1)


class SmallEncoder(_Half):
    """Video to latents (see `stages.codec.base.Encoder`). Deterministic: the same frames give the same latents."""

    def __init__(self, config: SmallConfig | None = None):
        config = config or SmallConfig()
        deep, middle, shallow = config.encoder
        depths = config.encoder_blocks
        super().__init__(
            config,
            [
                nn.Conv2d(12, shallow, 3, padding=1),
                *blocks(shallow, depths[2], 0.0),
                Shrink(shallow, middle, 2),
                *blocks(middle, depths[1], config.memory),
                Shrink(middle, deep, 2),
                *blocks(deep, depths[0], config.memory),
                nn.Conv2d(deep, config.channels, 3, padding=1),
            ],
        )

    def forward(self, frames: Tensor, state: CodecState) -> Tensor:
        """[B, 3, 4 m, H, W] in [-1, 1] to normalised latents [B, channels, m, H / 8, W / 8]."""
        mean, std = self._affine()
        return (self.raw(frames, state) - mean) / std

    def raw(self, frames: Tensor, state: CodecState) -> Tensor:
        """As `forward`, before normalisation: what training takes the statistics of."""
        batch, _, count, height, width = frames.shape
        if count % TEMPORAL_STRIDE or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
            raise ValueError(f"{count} frames of {height}x{width} do not divide into 4x8x8")
        x = frames.transpose(1, 2).flatten(0, 1)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = self._walk(x, batch, state)
        state.steps += count // TEMPORAL_STRIDE
        return x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


class SmallDecoder(_Half):
    """Latents to video (see `stages.codec.base.Decoder`)."""

    def __init__(self, config: SmallConfig | None = None):
        config = config or SmallConfig()
        deep, middle, shallow = config.decoder
        depths = config.decoder_blocks
        super().__init__(
            config,
            [
                nn.Conv2d(config.channels, deep, 3, padding=1),
                *blocks(deep, depths[0], config.memory),
                Grow(deep, middle, 2),
                *blocks(middle, depths[1], config.memory),
                Grow(middle, shallow, 2),
                *blocks(shallow, depths[2], 0.0),
                nn.Conv2d(shallow, 12, 3, padding=1),
            ],
        )

    def forward(self, latents: Tensor, state: CodecState) -> Tensor:
        """Normalised latents [B, channels, m, h, w] to frames [B, 3, 4 m, 8 h, 8 w] in [-1, 1]."""
        frames = self.raw(latents, state)
        return frames.clamp(-1, 1)

    def raw(self, latents: Tensor, state: CodecState) -> Tensor:
        """As `forward`, not yet clamped: training needs the gradient beyond the ends of the range."""
        mean, std = self._affine()
        batch, _, count = latents.shape[:3]
        # A bounded input keeps a diffusion model's outliers from ever becoming flashes on the screen.
        x = torch.tanh((latents * std + mean) / 4) * 4
        x = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.pixel_shuffle(self._walk(x, batch, state), 2)
        state.steps += count
        return x.unflatten(0, (batch, -1)).transpose(1, 2)

    def frames(self, latents: int, first: bool) -> int:
        """Four video frames per latent frame, at the start of a stream as well."""
        return TEMPORAL_STRIDE * latents
