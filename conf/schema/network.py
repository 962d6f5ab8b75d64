"""Sizes of a model's network."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError, positive
from conf.schema.conditioning import AudioConfig


@dataclass
class NetworkConfig:
    """Sizes of the diffusion transformer (names as in Wan's `config.json` where it has one)."""

    dim: int = 64
    ffn_dim: int = 128
    heads: int = 4
    layers: int = 6
    patch: list[int] = field(default_factory=lambda: [1, 2, 2])
    in_channels: int = 16
    out_channels: int = 16
    freq_dim: int = 256
    text_dim: int = 32
    text_tokens: int = 8
    """Text rows; shorter prompts are padded with zero rows, which take part."""
    eps: float = 1e-6
    token_types: bool = False
    """Learned type embeddings that tell noisy tokens from reference and motion tokens."""
    frame_pack: bool = False
    """Motion tokens beside the reference: the 19 latent frames before the stream, packed."""
    pose: bool = False
    """Latents of a pose are added to the chunk's own."""
    actions: list[str] = field(default_factory=list)
    """Names of the actions that modulate every layer, per latent frame; empty: none."""
    audio: AudioConfig | None = None

    def __post_init__(self):
        for name in ("dim", "ffn_dim", "heads", "layers", "in_channels", "out_channels", "text_tokens"):
            positive(f"model.network.{name}", getattr(self, name))
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model.network.heads={self.heads}",
                f"must divide dim={self.dim} into heads of even width",
                f"use {max(h for h in range(1, self.heads + 1) if self.dim % h == 0 and self.dim // h % 2 == 0)}",
            )
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise UserError(f"model.network.patch={self.patch}", "is three sizes: frames, rows, columns", "use [1,2,2]")
        bad = [layer for layer in self.audio.layers if not 0 <= layer < self.layers] if self.audio else []
        if bad:
            raise UserError(
                f"model.network.audio.layers={self.audio.layers}",
                f"layers are 0 to {self.layers - 1}",
                f"remove {bad}",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def audio_dim(self) -> int:
        """Width of an audio token; 0 for a network without sound."""
        if not self.audio:
            return 0
        return self.dim if self.audio.wav2vec else self.audio.dim
