"""Which network stands between pixels and latents."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import choice, positive
from conf.paths import found


@dataclass
class CodecConfig:
    """The network between pixels and latents.

    `small`: the pocket models'. `wan`: the Wan VAE. `taehv`: a small distilled decoder of the same latents.
    """

    kind: str = "small"
    width: int = 96
    """Channels of the Wan VAE at full resolution, where it has random weights (codec files say their own sizes)."""
    checkpoint: str | None = None
    vae: str | None = None
    """Beside a `taehv` decoder: the Wan VAE whose encoder makes latents of a reference; null: as the checkpoint's
    folder has it."""
    statistics: str | None = None
    """Which data's latent mean and deviation to use, of those the small codec's file holds."""
    prime: int = 0
    """Motion frames that are decoded and dropped before a stream, so that its first chunk is as long as all others."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)
        self.vae = found(self.vae)
        choice("model.codec.kind", self.kind, ("small", "wan", "taehv"))
        positive("model.codec.width", self.width)
