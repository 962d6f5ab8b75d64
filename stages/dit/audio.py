"""Sound in the layers: a cross-attention of each latent frame's tokens to that frame's audio tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import Attend
from stages.dit.layers import Attention
from stages.inputs import Given


class AudioInjector(nn.Module):
    """Cross-attention of each latent frame's tokens to that frame's audio tokens, added without a gate.

    Args:
        names: per layer that is followed by it, what that layer's part is called in a checkpoint.
        dim, heads, eps: of the network.
        audio_dim: width of an audio token.
    """

    def __init__(self, names: dict[int, str], dim: int, heads: int, audio_dim: int, eps: float):
        super().__init__()
        self.names = names
        self.injector = nn.ModuleDict({name: Attention(dim, heads, eps, audio_dim) for name in names.values()})

    def forward(self, layer: int, x: Tensor, audio: Tensor, core: Attend) -> Tensor:
        """x [B, f n, d] and audio tokens [B, f, a, audio_dim] to [B, f n, d]; unchanged after other layers."""
        if layer not in self.names:
            return x
        name, frames = self.names[layer], audio.shape[1]
        attention = self.injector[name]
        h = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).unflatten(1, (frames, -1))
        h, audio = self.scaled(name, h, audio)
        h = h.to(x.dtype).flatten(0, 1)
        y = attention.merge(core(attention.queries(h), *attention.keys_values(audio.flatten(0, 1)), None))
        return x + y.unflatten(0, (-1, frames)).flatten(1, 2)

    def scaled(self, name: str, h: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tokens [B, f, n, d], float32, and the audio tokens that are keys: as they are, or scaled by one of
        them that is none."""
        return h, audio


class Hears:
    """A transformer some of whose layers, those in `audio_injector`, are followed by the input `audio`."""

    def after(self, layer: int, x: Tensor, given: Given, core: Attend) -> Tensor:
        """What is put behind a layer: nothing in a pass without sound (the prefill of a reference)."""
        audio = given.get("audio")
        if audio is None or not hasattr(self, "audio_injector"):
            return x
        return self.audio_injector(layer, x, audio, core)
