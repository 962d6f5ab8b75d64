"""The network: the shared transformer, with sound after some layers and actions in every layer's modulation.

Actions enter by an offset on every layer's modulation per latent frame, as adaLN world models do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import KeysValues
from stages.denoise.network import Take
from stages.dit.audio import AudioInjector, Hears
from stages.dit.network import Constants, Drive, TimeTerms, Transformer
from stages.inputs import FRAMES_PER_LATENT, Given
from stages.models.pocket.sizes import Sizes


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


class Network(Hears, Transformer):
    """A range of layers; see `Transformer`."""

    def __init__(self, config: Sizes, layers: range | None = None, attention: str = "sdpa"):
        self.typed = config.token_types
        super().__init__(config, layers, attention)
        if audio := config.audio:
            names = {i: str(i) for i in audio.layers if i in self.layers}
            if names:
                self.audio_injector = AudioInjector(names, config.dim, config.heads, audio.dim, config.eps)
        if config.actions:
            self.action_modulation = ActionModulation(len(config.actions), FRAMES_PER_LATENT, config.dim)

    def time_terms(self, embeddings: tuple[Tensor, Tensor], actions: Tensor | None = None) -> TimeTerms:
        """Terms of every layer held. Constant for a step, unless actions [B, f, 4 * classes] shift them per frame."""
        e, e6 = embeddings
        if actions is not None:
            e6 = e6 + self.action_modulation(actions.to(self.device, self.dtype))
        return super().time_terms((e, e6))

    def drive(
        self, constants: Constants, states: dict[int, KeysValues], given: Given, take: Take, leaves: bool = True
    ) -> Drive:
        if (actions := given.get("actions")) is not None:
            constants = Constants(constants.embeddings, self.time_terms(constants.embeddings, actions))
        return super().drive(constants, states, given, take, leaves)
