"""The transformer layer of Wan2.1/2.2: self-attention, text cross-attention and feed-forward, modulated by time.

Shapes: B batch, f latent frames, n tokens of a frame, N = f n tokens, d width. Module names give the
published checkpoint keys. A layer does not know where its self-attention's history is: it hands q, k, v to
`attend`, and whoever runs the pass decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import Attend

History = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q, k, v) -> y, all [B, N, heads, head_dim]; q and k come without positions."""

KeysValues = tuple[Tensor, Tensor]


class Modulation(NamedTuple):
    """One layer's six modulation terms, each float32 [B or 1, f or 1, 1, d]; `scale` holds 1 + scale."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the full width, before the heads are split."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * scale + shift for x [B, N, d] and terms [B or 1, f or 1, 1, d], computed in float32."""
    if scale.numel() == scale.shape[-1]:
        # One term for all tokens is a LayerNorm with that weight and bias: a single fused kernel.
        return F.layer_norm(x.float(), x.shape[-1:], scale.flatten(), shift.flatten(), eps)
    normed = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    framed = normed.unflatten(1, (scale.shape[1], -1))
    return torch.addcmul(shift, framed, scale).flatten(1, 2)


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate in float32, for x, y [B, N, d] and a gate [B or 1, f or 1, 1, d]."""
    if gate.numel() == gate.shape[-1]:
        return torch.addcmul(x, y.float(), gate.flatten())
    frames = gate.shape[1]
    return torch.addcmul(x.unflatten(1, (frames, -1)), y.float().unflatten(1, (frames, -1)), gate).flatten(1, 2)


class Attention(nn.Module):
    """Projections and q/k norms shared by self-attention and every cross-attention."""

    def __init__(self, dim: int, heads: int, eps: float, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim or dim, dim)
        self.v = nn.Linear(context_dim or dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, d] to normalised queries [B, N, heads, head_dim]."""
        return self._split(self.norm_q(self.q(x)))

    def keys_values(self, context: Tensor) -> KeysValues:
        """[B, M, context_dim] to normalised keys and values, each [B, M, heads, head_dim]."""
        return self._split(self.norm_k(self.k(context))), self._split(self.v(context))

    def merge(self, y: Tensor) -> Tensor:
        """[B, N, heads, head_dim] to [B, N, d]."""
        return self.o(y.flatten(2))


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, index: int, dim: int, ffn_dim: int, heads: int, eps: float):
        super().__init__()
        self.index, self.eps = index, eps
        self.self_attn = Attention(dim, heads, eps)
        self.cross_attn = Attention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def modulated(self, e6: Tensor) -> Modulation:
        """The layer's terms for projected time embeddings [B or 1, f or 1, 6, d]; constant for a given step."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            t.unsqueeze(2) for t in (self.modulation.float() + e6).unbind(2)
        )
        return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def forward(self, x: Tensor, m: Modulation, text: KeysValues, attend: History, core: Attend) -> Tensor:
        """[B, N, d] to [B, N, d]; the residual stays in float32 within the layer, as in Wan."""
        dtype = x.dtype
        x = x.float()
        h = modulate(x, m.shift1, m.scale1, self.eps).to(dtype)
        y = attend(self.index, self.self_attn.queries(h), *self.self_attn.keys_values(h))
        x = gated(x, self.self_attn.merge(y), m.gate1)
        h = F.layer_norm(x, x.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), self.eps).to(dtype)
        x = x + self.cross_attn.merge(core(self.cross_attn.queries(h), *text, None))
        h = modulate(x, m.shift2, m.scale2, self.eps).to(dtype)
        return gated(x, self.ffn(h), m.gate2).to(dtype)
