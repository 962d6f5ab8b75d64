"""Latents to patches and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patches(latents: Tensor, patch: Sequence[int]) -> Tensor:
    """[B, C, f, h, w] to [B, N, C * patch], channel slowest, as a convolution's weights are laid out."""
    pt, ph, pw = patch
    b, c, f, h, w = latents.shape
    x = latents.reshape(b, c, f // pt, pt, h // ph, ph, w // pw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(b, -1, c * pt * ph * pw)


def unpatch(x: Tensor, patch: Sequence[int], shape: torch.Size) -> Tensor:
    """[B, N, patch * C], channel fastest, to the latents' `shape` (with the output's channels)."""
    pt, ph, pw = patch
    b, _, f, h, w = shape
    x = x.reshape(b, f // pt, h // ph, w // pw, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, -1, f, h, w)


def embed(latents: Tensor, convolution: nn.Conv3d) -> Tensor:
    """[B, C, f, h, w] to tokens [B, N, d]: a convolution whose stride is its kernel, as one matrix product."""
    x = patches(latents, convolution.kernel_size)
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)
