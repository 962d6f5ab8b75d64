"""wav2vec2 states of a chunk to audio tokens: Wan2.2-S2V's causal encoder as Live Avatar uses it, chunk by chunk.

It carries nothing from one chunk to the next: what was before a chunk is taken to have sounded like its first frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import devices
from stages.inputs import FRAMES_PER_LATENT

KERNEL = 3
LEAD = 9
"""Copies of the first frame before a chunk. A token sees no more than 5 frames of what was before, and strides want as
many copies as leave a latent frame's first frame. Live Avatar puts 73 there and drops 19 tokens: the same values."""


class CausalConv(nn.Module):
    """A convolution over time that sees nothing later; what comes before the start is like the start."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, KERNEL, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, inputs] to [B, ceil(t / stride), outputs]."""
        return self.conv(F.pad(x.transpose(1, 2), (KERNEL - 1, 0), mode="replicate")).transpose(1, 2)


class Encoder(nn.Module):
    """The convolutions: `tokens` local ones and a global one, which share all but the first and the last layer."""

    def __init__(self, inputs: int, dim: int, tokens: int):
        super().__init__()
        quarter, half = dim // 4, dim // 2
        self.conv1_local = CausalConv(inputs, quarter * tokens, 1)
        self.conv1_global = CausalConv(inputs, quarter, 1)
        self.conv2 = CausalConv(quarter, half, 2)
        self.conv3 = CausalConv(half, dim, 2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, inputs] to [B, t / 4, tokens + 2, dim]: local tokens, the learned one, the global one."""
        batch, width = len(x), self.conv2.conv.in_channels
        heads = torch.cat([self.conv1_local(x), self.conv1_global(x)], -1)
        # Every token is a sequence of its own from here on.
        h = _activated(heads.unflatten(-1, (-1, width)).transpose(1, 2).flatten(0, 1))
        h = _activated(self.conv3(_activated(self.conv2(h)))).unflatten(0, (batch, -1)).transpose(1, 2)
        learned = self.padding_tokens.expand(batch, h.shape[1], -1, -1)
        return torch.cat([h[:, :, :-1], learned, self.final_linear(h[:, :, -1:])], 2)


def _activated(x: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x, x.shape[-1:], eps=1e-6))


class CausalAudioEncoder(nn.Module):
    """Weights lie in a model's file under `casual_audio_encoder.` (as it is published). Float32 throughout.

    Args:
        layers, inputs: hidden states and their width.
        dim: width of the network.
        tokens: local tokens of a latent frame.
    """

    def __init__(self, layers: int, inputs: int, dim: int, tokens: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, layers, 1, 1), 0.01))
        self.encoder = Encoder(inputs, dim, tokens)

    def tokens(self, features: Tensor) -> Tensor:
        """Hidden states [B, layers, inputs, 4 f] of the video frames of a chunk to tokens [B, f, tokens + 2, dim].

        The last token is the global one, which stands for the latent frame as a whole. Latent frame m hears the video
        frames 4 m - 5 to 4 m + 3.
        """
        features = devices.of(self.weights.device).upload(features).float()
        share = F.silu(self.weights)
        mixed = ((features * share).sum(1) / share.sum()).transpose(1, 2)
        led = torch.cat([mixed[:, :1].expand(-1, LEAD, -1), mixed], 1)
        return self.encoder(led)[:, -(features.shape[-1] // FRAMES_PER_LATENT) :]
