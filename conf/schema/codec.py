"""Which network stands between pixels and latents."""

from __future__ import annotations

from dataclasses import dataclass

from conf.codecs import declared
from conf.errors import positive
from conf.hub import found


@dataclass(unsafe_hash=True)
class CodecConfig:
    """The network between pixels and latents."""

    kind: str = "small"
    """A folder of `stages/codec`, or a package elsewhere that has what a folder there has."""
    width: int = 96
    """Channels at full resolution of a codec of many sizes, where it has random weights (files say their own)."""
    checkpoint: str | None = None
    """The decoder's weights; null: as the model's folder has them, or random."""
    vae: str | None = None
    """Beside a decoder of another codec's latents: the file of that codec, whose encoder makes latents of a reference;
    null: as the checkpoint's folder has it."""
    statistics: str | None = None
    """Which data's latent mean and deviation to use, of those the small codec's file holds."""
    prime: int = 0
    """Motion frames that are decoded and dropped before a stream, so that its first chunk is as long as all others."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)
        self.vae = found(self.vae)
        declared(self.kind)
        positive("model.codec.width", self.width, most=100_000)
