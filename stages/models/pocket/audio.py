"""Sound features to audio tokens: the learned part of hearing, trained together with the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import devices
from stages.inputs import FRAMES_PER_LATENT
from stages.models.pocket.sizes import AudioConfig


class AudioEncoder(nn.Module):
    """One token per video frame from that frame's log-mel rows.

    Tokens of a latent frame are told apart by a learned position each: the cross-attention that reads them has
    none of its own. Weights lie in a model's file under `audio_encoder.`.
    """

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.mix = nn.Sequential(
            nn.Linear(config.features, 2 * config.dim), nn.GELU(), nn.Linear(2 * config.dim, config.dim)
        )
        self.position = nn.Parameter(torch.empty(FRAMES_PER_LATENT, config.dim))
        nn.init.normal_(self.position, std=0.5)

    def tokens(self, features: Tensor) -> Tensor:
        """Features [B, 1, rows * bands, 4 f] of a chunk's video frames to tokens [B, f, 4, dim]."""
        return self(features[:, 0].transpose(1, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, 4 f, rows * bands] of the video frames of f latent frames to tokens [B, f, 4, dim]."""
        if features.shape[1] % FRAMES_PER_LATENT or features.shape[2] != self.config.features:
            raise ValueError(
                f"features are {list(features.shape)}, not [B, {FRAMES_PER_LATENT} f, {self.config.features}]"
            )
        tokens = self.mix(devices.of(self.position.device).upload(features).to(self.position.dtype))
        return tokens.unflatten(1, (-1, FRAMES_PER_LATENT)) + self.position
