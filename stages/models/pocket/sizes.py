"""Sizes of the models that are trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conf import published as folder
from conf.errors import UserError, positive
from stages.dit.sizes import PUBLISHED, SUPPORTED, TransformerSizes


@dataclass
class AudioConfig:
    """Sound as causal log-mel features, cross-attended per latent frame after some of the layers."""

    layers: list[int] = field(default_factory=list)
    """Network layers followed by an audio cross-attention."""
    dim: int = 64
    """Width of an audio token; there is one token per video frame."""
    bands: int = 32
    """Mel bands of a feature row."""
    rows_per_frame: int = 4
    """Feature rows per video frame."""
    lookahead_s: float = 0.0
    """How far a frame's features may look ahead of the frame's end."""

    def __post_init__(self):
        for name in ("dim", "bands", "rows_per_frame"):
            positive(f"model.network.audio.{name}", getattr(self, name), most=100_000)

    @property
    def features(self) -> int:
        """Features per video frame."""
        return self.bands * self.rows_per_frame


@dataclass
class Sizes(TransformerSizes):
    """The shared transformer's, and what drives it."""

    token_types: bool = False
    """Learned type embeddings that tell noisy tokens from those of a reference."""
    actions: list[str] = field(default_factory=list)
    """Names of the actions that modulate every layer, per latent frame; empty: none."""
    audio: AudioConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        bad = [layer for layer in self.audio.layers if not 0 <= layer < self.layers] if self.audio else []
        if bad:
            raise UserError(
                f"model.network.audio.layers={self.audio.layers}",
                f"layers are 0 to {self.layers - 1}",
                f"remove {bad}",
            )

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """With 4 n d^2 where sound is heard."""
        heard = set(self.audio.layers) if self.audio else set()
        plain = super().layer_flops(new, keys)
        return [flops + 4.0 * new * self.dim**2 * (i in heard) for i, flops in enumerate(plain)]

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """With two products of [d, d] where sound is heard."""
        heard, d = set(self.audio.layers) if self.audio else set(), self.dim
        plain = super().layer_values(new, keys)
        return [values + (4.0 * new * d + 2 * d * d + 2 * d) * (i in heard) for i, values in enumerate(plain)]


def published(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a `config.json` tells; raises UserError."""
    return folder.sizes(said, PUBLISHED, SUPPORTED, "one of the shared transformer")
