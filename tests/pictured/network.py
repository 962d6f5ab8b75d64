"""The network: self-attention alone, and what drives it added to tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import devices
from stages.denoise.network import Network as Base
from stages.dit.patches import embed, unpatch
from stages.inputs import FRAMES_PER_LATENT

from .sizes import REACH, Sizes


class Network(Base):
    """A range of layers."""

    def __init__(self, config: Sizes, layers: range | None = None, attention: str = "sdpa"):
        super().__init__(config, layers, attention)
        d, patch = config.dim, tuple(config.patch)
        self.qkv = nn.ModuleDict({str(i): nn.Linear(d, 3 * d) for i in self.layers})
        self.keys = nn.Linear((REACH + 3) * len(config.keys), d)
        self.seen = nn.Linear(config.image_dim, d)
        self.patch = nn.Conv3d(2 * config.in_channels + 4, d, patch, patch)
        self.head = nn.Linear(d, 4 * config.out_channels)

    def constants(self, timestep):
        return timestep.to(self.device, self.dtype).view(1) / 1000

    def states(self, epoch):
        return self.seen(devices.of(self.device).upload(epoch["image_rows"]).to(self.dtype)).mean(1)

    def drive(self, constants, states, given, take, leaves=True):
        windows = given["keyboard"].to(self.dtype).unfold(1, REACH + 3, FRAMES_PER_LATENT).flatten(2)
        height, width = given["mask"].shape[-2:]
        tokens = (height // self.config.patch[1]) * (width // self.config.patch[2])
        return take((self.keys(windows) + states).repeat_interleave(tokens, 1) + constants)

    def enter(self, x: Tensor, given):
        return embed(torch.cat([x, given["mask"], given["condition"]], 1), self.patch) if self.first else x

    def through(self, x, drive, attend):
        for i, layer in zip(self.layers, self.qkv.values(), strict=True):
            q, k, v = layer(x + drive).unflatten(-1, (3, self.config.heads, -1)).unbind(2)
            x = x + attend(i, q.contiguous(), k.contiguous(), v.contiguous()).flatten(2)
        return self.head(x) if self.last else x

    def leave(self, x, shape):
        return unpatch(x, self.config.patch, shape) if self.last else x
