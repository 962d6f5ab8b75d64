"""Optional conditioning: small modules that a configuration attaches to the network.

Sound enters by a cross-attention per latent frame after some layers (as Wan2.2-S2V injects it), actions by
an offset on every layer's modulation per latent frame (as adaLN world models do).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import Attend
from stages.denoise.layers import Attention


class AudioInjector(nn.Module):
    """Cross-attention of each latent frame's tokens to that frame's audio tokens, added without a gate."""

    def __init__(self, layers: list[int], dim: int, heads: int, audio_dim: int, eps: float):
        super().__init__()
        self.injector = nn.ModuleDict({str(i): Attention(dim, heads, eps, audio_dim) for i in layers})

    def forward(self, layer: int, x: Tensor, audio: Tensor, core: Attend) -> Tensor:
        """x [B, f n, d] and audio tokens [B, f, a, audio_dim] to [B, f n, d]; unchanged after other layers."""
        if str(layer) not in self.injector:
            return x
        attention, frames = self.injector[str(layer)], audio.shape[1]
        h = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)
        h = h.unflatten(1, (frames, -1)).flatten(0, 1)
        y = attention.merge(core(attention.queries(h), *attention.keys_values(audio.flatten(0, 1)), None))
        return x + y.unflatten(0, (-1, frames)).flatten(1, 2)


class ActionModulation(nn.Module):
    """The actions of a latent frame's video frames to an offset on the projected time embedding."""

    def __init__(self, actions: int, frames_per_latent: int, dim: int):
        super().__init__()
        self.embed = nn.Linear(actions * frames_per_latent, dim)
        self.project = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, actions: Tensor) -> Tensor:
        """One-hot actions [B, f, frames_per_latent * actions] to offsets [B, f, 6, d]."""
        return self.project(F.silu(self.embed(actions))).unflatten(-1, (6, -1)).float()
