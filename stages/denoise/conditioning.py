"""Optional conditioning: small modules that a configuration attaches to the network.

Sound enters by a cross-attention per latent frame after some layers (as Wan2.2-S2V injects it), actions by
an offset on every layer's modulation per latent frame (as adaLN world models do).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import Attend
from stages.denoise.layers import Attention


class AudioInjector(nn.Module):
    """Cross-attention of each latent frame's tokens to that frame's audio tokens, added without a gate.

    Args:
        names: per layer that is followed by it, what that layer's part is called in a checkpoint.
        dim, heads, eps: of the network.
        audio_dim: width of an audio token.
        adain: whether the last audio token is no key but scales and shifts the queries' norm (Wan2.2-S2V).
    """

    def __init__(self, names: dict[int, str], dim: int, heads: int, audio_dim: int, eps: float, adain: bool = False):
        super().__init__()
        self.names, self.adain = names, adain
        self.injector = nn.ModuleDict({name: Attention(dim, heads, eps, audio_dim) for name in names.values()})
        if adain:
            self.injector_adain_layers = nn.ModuleDict({name: AdaIN(dim, audio_dim) for name in names.values()})

    def forward(self, layer: int, x: Tensor, audio: Tensor, core: Attend) -> Tensor:
        """x [B, f n, d] and audio tokens [B, f, a, audio_dim] to [B, f n, d]; unchanged after other layers."""
        if layer not in self.names:
            return x
        name, frames = self.names[layer], audio.shape[1]
        attention = self.injector[name]
        h = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).unflatten(1, (frames, -1))
        if self.adain:
            audio, overall = audio[:, :, :-1], audio[:, :, -1:]
            h = self.injector_adain_layers[name](h, overall)
        h = h.to(x.dtype).flatten(0, 1)
        y = attention.merge(core(attention.queries(h), *attention.keys_values(audio.flatten(0, 1)), None))
        return x + y.unflatten(0, (-1, frames)).flatten(1, 2)


class AdaIN(nn.Module):
    """Shift and scale of normalised tokens by what a frame sounds like as a whole, under the published name."""

    def __init__(self, dim: int, audio_dim: int):
        super().__init__()
        self.linear = nn.Linear(audio_dim, 2 * dim)

    def forward(self, h: Tensor, overall: Tensor) -> Tensor:
        """Tokens [B, f, n, d], float32, by a token [B, f, 1, audio_dim] for each frame."""
        shift, scale = self.linear(F.silu(overall)).float().chunk(2, -1)
        return torch.addcmul(shift, h, 1 + scale)


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
