"""The network of Wan2.2-S2V: the shared transformer, with sound after some layers, a pose, a reference and motion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.rope import Rope
from stages.dit.audio import AudioInjector, Hears
from stages.dit.network import MOTION, REFERRED, Transformer
from stages.dit.patches import embed
from stages.inputs import REFERENCE, Given
from stages.models.live_avatar.frame_pack import FramePack, packed_table
from stages.models.live_avatar.sizes import Sizes


class AdaIN(nn.Module):
    """Shift and scale of normalised tokens by what a frame sounds like as a whole, under the published name."""

    def __init__(self, dim: int, audio_dim: int):
        super().__init__()
        self.linear = nn.Linear(audio_dim, 2 * dim)

    def forward(self, h: Tensor, overall: Tensor) -> Tensor:
        """Tokens [B, f, n, d], float32, by a token [B, f, 1, audio_dim] for each frame."""
        shift, scale = self.linear(F.silu(overall)).float().chunk(2, -1)
        return torch.addcmul(shift, h, 1 + scale)


class ScaledInjector(AudioInjector):
    """Its last audio token is no key but scales and shifts the queries' norm."""

    def __init__(self, names: dict[int, str], dim: int, heads: int, audio_dim: int, eps: float):
        super().__init__(names, dim, heads, audio_dim, eps)
        self.injector_adain_layers = nn.ModuleDict({name: AdaIN(dim, audio_dim) for name in names.values()})

    def scaled(self, name: str, h: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        return self.injector_adain_layers[name](h, audio[:, :, -1:]), audio[:, :, :-1]


class Network(Hears, Transformer):
    """A range of layers; see `Transformer`."""

    typed = True

    def __init__(self, config: Sizes, layers: range | None = None, attention: str = "sdpa"):
        super().__init__(config, layers, attention)
        if self.first:
            patch = tuple(config.patch)
            self.cond_encoder = nn.Conv3d(config.in_channels, config.dim, patch, patch)
            self.frame_packer = FramePack(config.in_channels, config.dim, config.patch)
        # In a checkpoint these parts are counted.
        names = {layer: str(count) for count, layer in enumerate(config.audio.layers) if layer in self.layers}
        if names:
            kind = ScaledInjector if config.audio.adain else AudioInjector
            self.audio_injector = kind(names, config.dim, config.heads, config.dim, config.eps)

    def enter(self, x: Tensor, given: Given) -> Tensor:
        """With a pose: latents like `x` that say where the body is. Where nothing is said of it, the published model
        takes latents of zeros, of which the bias is left."""
        if not self.first:
            return x
        pose, coder = given.get("pose"), self.cond_encoder
        return super().enter(x, given) + (coder.bias if pose is None else embed(pose.to(self.dtype), coder))

    def enter_sink(self, sink: Given) -> Tensor:
        """Tokens [motion | reference]."""
        motion = self.of_type(self.frame_packer(sink["motion"]), MOTION)
        return torch.cat([motion, self.tokens(sink[REFERENCE], REFERRED)], 1)

    def fixed_table(self, rope: Rope) -> Tensor:
        return packed_table(rope)
