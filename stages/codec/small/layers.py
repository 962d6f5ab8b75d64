"""Layers of the pocket models' codec: convolutions frame by frame, and two that mix frames.

Layers take frames [B T, width, h, w] in channels-last memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions around a residual, starting as the identity."""

    def __init__(self, width: int, extra: int = 0):
        super().__init__()
        self.first = nn.Conv2d(width + extra, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] to the same."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class Memory(Block):
    """A `Block` that also sees the first `extra` channels of its own input one time step earlier (zeros at first)."""

    def __init__(self, width: int, extra: int):
        super().__init__(width, extra)
        self.extra = extra

    def remember(self, x: Tensor, batch: int, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B * T, width, h, w] and the tail [B, extra, h, w] of the last call to the result and the new tail."""
        part = x[:, : self.extra].unflatten(0, (batch, -1))
        if cache is None:
            cache = torch.zeros_like(part[:, 0])
        past = torch.cat([cache[:, None], part[:, :-1]], dim=1).flatten(0, 1)
        joined = torch.cat([x, past], dim=1)
        # A copy: a view would keep the whole activation alive between chunks.
        tail = part[:, -1].clone()
        return F.relu(x + self.second(F.relu(self.first(joined)))), tail


def _pass_through(mix: nn.Conv2d) -> None:
    """Add to a fresh 1x1 convolution what repeats each channel (if it widens) or averages groups of them (if not).

    With pictures that are blurred but right from the first step on, training takes half as long.
    """
    if mix.weight.is_meta:
        return
    out, inside = mix.weight.shape[:2]
    near, far = torch.arange(out), torch.arange(inside)
    same = near[:, None] // (out // inside) == far if out > inside else near[:, None] == far // (inside // out)
    with torch.no_grad():
        mix.weight += (same / same.sum(dim=1, keepdim=True))[:, :, None, None]


class Shrink(nn.Module):
    """Half the width and height, and 1 / `rate` of the time steps, by folding both into channels."""

    def __init__(self, width: int, out: int, rate: int):
        super().__init__()
        self.rate = rate
        self.mix = nn.Conv2d(width * 4 * rate, out, 1)
        _pass_through(self.mix)

    def forward(self, x: Tensor) -> Tensor:
        """[B * T, width, h, w] to [B * T / rate, out, h / 2, w / 2]."""
        x = F.pixel_unshuffle(x, 2)
        if self.rate > 1:
            x = x.unflatten(0, (-1, self.rate)).flatten(1, 2)
        return F.relu(self.mix(x))


class Grow(nn.Module):
    """Twice the width and height, and `rate` times the time steps, by unfolding channels into both."""

    def __init__(self, width: int, out: int, rate: int):
        super().__init__()
        self.rate = rate
        self.mix = nn.Conv2d(width, out * 4 * rate, 1)
        _pass_through(self.mix)

    def forward(self, x: Tensor) -> Tensor:
        """[B * T, width, h, w] to [B * T * rate, out, 2 h, 2 w]."""
        x = self.mix(x)
        if self.rate > 1:
            x = x.unflatten(1, (self.rate, -1)).flatten(0, 1)
        return F.relu(F.pixel_shuffle(x, 2))


def blocks(width: int, depth: int, memory: float) -> list[nn.Module]:
    """`depth` blocks, the first with memory unless `memory` is 0."""
    extra = int(width * memory)
    return [Memory(width, extra) if extra and i == 0 else Block(width) for i in range(depth)]
