"""A small distilled decoder of Wan2.1's latents in TAEHV's layout (github.com/madebyollin/taehv, `taew2_1`): 2D
convolutions at a quarter of the Wan2.1 VAE's width and less, for low latency at some loss of detail.

Frame by frame but for two things: each `MemBlock` sees its own input one time step earlier, and two of the three levels
double the number of time steps. What a stream remembers is nine such inputs. Names of parameters are the published
ones; the file's encoder is not read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.errors import UserError
from stages.codec.base import CodecState

CHANNELS = 16
WIDTHS = (256, 128, 64, 64)
"""Channels at 1/8, 1/4 and 1/2 of the picture, and at all of it."""
RATES = (1, 2, 2)
"""Time steps out for one in, after each of the first three."""


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Squash(nn.Module):
    """Keeps a latent within -3 and 3, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Three convolutions over a frame and the frame before it, and the frame itself added."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class Grow(nn.Module):
    """`rate` time steps for each one."""

    def __init__(self, width: int, rate: int):
        super().__init__()
        self.rate = rate
        self.conv = nn.Conv2d(width, width * rate, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B T, C, h, w] to [B T rate, C, h, w]."""
        return self.conv(x).unflatten(1, (self.rate, -1)).flatten(0, 1)


def _channels_last(module: nn.Module, incompatible_keys: object) -> None:
    module.to(memory_format=torch.channels_last)  # a named function, since a module with a lambda cannot be pickled


class TaehvDecoder(nn.Module):
    """Latents to video (see `stages.codec.base.Decoder`).

    Its time steps lag the frames by three, which the first latent of a stream gives no pictures for: as with the
    Wan2.1 VAE, the first latent is one frame and every other four.
    """

    channels, temporal_stride, spatial_stride = CHANNELS, 4, 8

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [Squash(), _conv(CHANNELS, WIDTHS[0]), nn.ReLU()]
        for width, narrower, rate in zip(WIDTHS, WIDTHS[1:], RATES, strict=False):
            layers += [MemBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, rate), _conv(width, narrower, bias=False)]
        self.decoder = nn.ModuleList([*layers, nn.ReLU(), _conv(WIDTHS[-1], 3)])
        self.to(memory_format=torch.channels_last)
        # Loading with assign=True replaces the parameters, layout and all.
        self.register_load_state_dict_post_hook(_channels_last)

    def start(self) -> CodecState:
        """A fresh stream."""
        return CodecState([None for layer in self.decoder if isinstance(layer, MemBlock)])

    def frames(self, latents: int, first: bool) -> int:
        """How many video frames `latents` latent frames decode to, at the start of a stream or later."""
        return self.temporal_stride * latents - (self.temporal_stride - 1 if first and latents else 0)

    @torch.no_grad()
    def forward(self, latents: Tensor, state: CodecState) -> Tensor:
        """Normalised latents [B, 16, m, h, w] to frames [B, 3, n, 8 h, 8 w] in [-1, 1], n = `self.frames(m, first)`."""
        batch, channels, count = latents.shape[:3]
        if count == 0 or channels != self.channels:
            raise UserError(
                f"latents={list(latents.shape)}",
                f"a decoder takes [batch, {self.channels}, one or more latent frames, height, width]",
                "check the chunk length and that the latents are those of a Wan2.1 VAE",
            )
        x = latents.transpose(1, 2).flatten(0, 1).to(self.decoder[1].weight.dtype)
        x, slot = x.contiguous(memory_format=torch.channels_last), 0
        for layer in self.decoder:
            if isinstance(layer, MemBlock):
                x, slot = layer(x, self._past(x, batch, state, slot)), slot + 1
            else:
                x = layer(x)
        x = x.unflatten(0, (batch, -1)).transpose(1, 2)
        dropped = x.shape[2] - self.frames(count, first=state.steps == 0)
        state.steps += count
        return x[:, :, dropped:].clamp(0, 1) * 2 - 1

    @staticmethod
    def _past(x: Tensor, batch: int, state: CodecState, slot: int) -> Tensor:
        """Each frame's predecessor; the last frame is kept for the next call, as a copy that holds nothing else."""
        frames = x.unflatten(0, (batch, -1))
        before = state.cache[slot]
        before = torch.zeros_like(frames[:, :1]) if before is None else before
        state.cache[slot] = frames[:, -1:].clone()
        past = torch.cat([before, frames[:, :-1]], 1).flatten(0, 1)
        return past.contiguous(memory_format=torch.channels_last)
