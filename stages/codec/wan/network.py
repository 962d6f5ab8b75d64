"""The Wan2.1 VAE as two streaming halves: 16 channels, strides 4 (time) x 8 x 8 (space).

Causal in time: a stream's first frame is one latent, every later latent covers 4 frames. Both halves work
through one latent at a time, so memory does not depend on the length of a call or of the stream, and any way
of cutting a clip into calls gives the same result. State dicts carry the names in `Wan2.1_VAE.pth`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from conf.errors import UserError
from stages.codec.base import CodecState
from stages.codec.wan.layers import (
    CausalConv3d,
    Chain,
    Downsample,
    FrameAttention,
    ResidualBlock,
    RMSNorm,
    Upsample,
    channels_last,
    number_slots,
)

# Mean and standard deviation per latent channel, as published with Wan2.1.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


class _WanHalf(nn.Module):
    """What encoder and decoder share: strides, slots, layout.

    Args:
        base: width of the first level; 96 as published.
        multipliers: width of each level in units of `base`, finest first.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        temporal: for the step from each level to the next coarser one, whether it halves the frame rate too.
    """

    channels = len(MEAN)

    def __init__(
        self,
        base: int = 96,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        temporal: Sequence[bool] = (False, True, True),
    ):
        super().__init__()
        self.temporal_stride = 2 ** sum(temporal)
        self.spatial_stride = 2 ** len(temporal)
        self._build(base, multipliers, blocks, temporal)
        self.slots = number_slots(self)
        channels_last(self)
        # Loading with assign=True replaces the parameters, layout and all.
        self.register_load_state_dict_post_hook(_channels_last_hook)

    def _build(self, base: int, multipliers: Sequence[int], blocks: int, temporal: Sequence[bool]) -> None:
        """Create the layers, under their published names."""
        raise NotImplementedError

    def start(self) -> CodecState:
        """A fresh stream."""
        return CodecState([None] * self.slots)


class WanEncoder(_WanHalf):
    """Frames to normalised latents (the mean of the posterior), causally."""

    prefixes = ("encoder.", "conv1.")  # of this half's keys in the checkpoint

    def _build(self, base: int, multipliers: Sequence[int], blocks: int, temporal: Sequence[bool]) -> None:
        levels: list[nn.Module] = []
        widths = pairwise(base * m for m in (1, *multipliers))
        for (inputs, outputs), step in zip(widths, [*temporal, None], strict=True):
            levels += [ResidualBlock(outputs if block else inputs, outputs) for block in range(blocks)]
            levels += [] if step is None else [Downsample(outputs, step)]
        parts = {
            "conv1": CausalConv3d(3, base),
            "downsamples": Chain(*levels),
            "middle": _middle(outputs),
            "head": _head(outputs, 2 * self.channels),
        }
        self.encoder = Chain(OrderedDict(parts))
        self.conv1 = nn.Conv3d(2 * self.channels, 2 * self.channels, 1)

    @torch.no_grad()
    def forward(self, frames: Tensor, state: CodecState) -> Tensor:
        """[B, 3, n, H, W] in [-1, 1] to [B, 16, m, H / 8, W / 8]; n = 1 + 4 k at first, then 4 k."""
        lead = 1 if state.steps == 0 else 0
        self._check(frames, lead)
        batch, _, count, height, width = frames.shape
        groups = [1] * lead + [self.temporal_stride] * ((count - lead) // self.temporal_stride)
        size = height // self.spatial_stride, width // self.spatial_stride
        frames = frames.to(self.conv1.weight.dtype)
        latents = frames.new_empty(batch, self.channels, len(groups), *size)
        mean, std = _statistics(frames.device)
        for i, group in enumerate(frames.split(groups, dim=2)):
            x = self.encoder(group.contiguous(memory_format=torch.channels_last_3d), state.cache)
            mu = self.conv1(x)[:, : self.channels]  # the other half is the posterior's log-variance
            latents[:, :, i : i + 1] = (mu.float() - mean) / std
            state.steps += 1
        return latents

    def _check(self, frames: Tensor, lead: int) -> None:
        """Refuse a frame count or size that the strides do not divide."""
        count, height, width = frames.shape[2:]
        time, space = self.temporal_stride, self.spatial_stride
        least = lead or time
        if count < least or (count - lead) % time:
            lower = max(least, count - (count - lead) % time)
            call, formula = ("first call", f"1 + {time} k") if lead else ("later calls", f"{time} k")
            raise UserError(
                f"frames={count}",
                f"the {call} to an encoder must give {formula} frames",
                f"give {lower} or {lower + time} and keep the rest for the next call",
            )
        if height % space or width % space:
            raise UserError(
                f"frame size={height}x{width}",
                f"height and width must be multiples of {space}",
                f"crop or resize, e.g. to {max(1, height // space) * space}x{max(1, width // space) * space}",
            )


class WanDecoder(_WanHalf):
    """Normalised latents to frames, chunk by chunk."""

    prefixes = ("decoder.", "conv2.")  # of this half's keys in the checkpoint

    def _build(self, base: int, multipliers: Sequence[int], blocks: int, temporal: Sequence[bool]) -> None:
        levels: list[nn.Module] = []
        coarsest = inputs = base * multipliers[-1]
        for multiplier, step in zip(reversed(multipliers), [*reversed(temporal), None], strict=True):
            outputs = base * multiplier
            levels += [ResidualBlock(outputs if block else inputs, outputs) for block in range(blocks + 1)]
            levels += [] if step is None else [Upsample(outputs, step)]
            inputs = outputs // 2  # the upsampler halves the width
        parts = {
            "conv1": CausalConv3d(self.channels, coarsest),
            "middle": _middle(coarsest),
            "upsamples": Chain(*levels),
            "head": _head(outputs, 3),
        }
        self.decoder = Chain(OrderedDict(parts))
        self.conv2 = nn.Conv3d(self.channels, self.channels, 1)

    def frames(self, latents: int, first: bool) -> int:
        """How many video frames `latents` latent frames decode to, at the start of a stream or later."""
        return self.temporal_stride * latents - (self.temporal_stride - 1 if first and latents else 0)

    @torch.no_grad()
    def forward(self, latents: Tensor, state: CodecState) -> Tensor:
        """[B, 16, m, h, w] to [B, 3, n, 8 h, 8 w] in [-1, 1]; n = `self.frames(m, first)`."""
        batch, channels, count, height, width = latents.shape
        if count == 0 or channels != self.channels:
            raise UserError(
                f"latents={list(latents.shape)}",
                f"a decoder takes [batch, {self.channels}, one or more latent frames, height, width]",
                "check the chunk length and that the latents are those of a Wan2.1 VAE",
            )
        dtype = self.conv2.weight.dtype
        total = self.frames(count, first=state.steps == 0)
        size = height * self.spatial_stride, width * self.spatial_stride
        frames = latents.new_empty(batch, 3, total, *size, dtype=dtype)
        mean, std = _statistics(latents.device)
        done = 0
        for latent in latents.split(1, dim=2):
            z = (latent.float() * std + mean).to(dtype, memory_format=torch.channels_last_3d)
            x = self.decoder(self.conv2(z), state.cache)
            frames[:, :, done : done + x.shape[2]] = x.clamp_(-1, 1)
            done += x.shape[2]
            state.steps += 1
        return frames


def _channels_last_hook(module: nn.Module, incompatible_keys: object) -> None:
    channels_last(module)  # a named function, since a module with a lambda cannot be pickled


def _middle(channels: int) -> Chain:
    return Chain(ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels))


def _head(inputs: int, outputs: int) -> Chain:
    return Chain(OrderedDict({"0": RMSNorm(inputs), "2": CausalConv3d(inputs, outputs)}))


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [16, 1, 1, 1] in float32.

    Not buffers: the checkpoint has none, and casting the network to bf16 or building it on the meta device
    must not touch them.
    """
    return tuple(torch.tensor(v, device=device).view(-1, 1, 1, 1) for v in (MEAN, STD))
