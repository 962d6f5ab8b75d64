"""Sizes of Wan2.2's speech-to-video network, what its `config.json` says of them, and rules of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conf import published as folder
from conf.errors import UserError
from conf.schema import ModelConfig, Wav2VecConfig
from stages.dit.sizes import PUBLISHED, SUPPORTED, TransformerSizes
from stages.models.live_avatar.buckets import FRAMES, UNIT, packed_tokens


@dataclass
class AudioConfig:
    """Sound as the hidden states of a wav2vec2 model, cross-attended per latent frame after some of the layers."""

    layers: list[int] = field(default_factory=list)
    """Network layers followed by an audio cross-attention."""
    lookahead_s: float = 0.0
    """How far a frame's features may look ahead of the frame's end."""
    adain: bool = True
    """One more audio token per latent frame scales and shifts the queries."""
    wav2vec: Wav2VecConfig = field(default_factory=Wav2VecConfig)

    @property
    def tokens(self) -> int:
        """Audio tokens of a latent frame."""
        return self.wav2vec.tokens + 1 + self.adain


@dataclass
class Sizes(TransformerSizes):
    """The shared transformer's, and those of its sound."""

    audio: AudioConfig = field(default_factory=AudioConfig)

    def __post_init__(self):
        super().__post_init__()
        bad = [layer for layer in self.audio.layers if not 0 <= layer < self.layers]
        if bad:
            raise UserError(
                f"model.network.audio.layers={self.audio.layers}",
                f"layers are 0 to {self.layers - 1}",
                f"remove {bad}",
            )

    @property
    def before(self) -> int:
        return FRAMES

    @property
    def unit(self) -> int:
        return UNIT

    def fixed(self, tokens: int) -> int:
        return packed_tokens(tokens)

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """With 4 n d^2 where sound is heard. 40 layers at 704x384 come to 121e12, 80e12 of it linear."""
        heard = set(self.audio.layers)
        plain = super().layer_flops(new, keys)
        return [flops + 4.0 * new * self.dim**2 * (i in heard) for i, flops in enumerate(plain)]

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """With two products of [d, d] where sound is heard."""
        heard, d = set(self.audio.layers), self.dim
        plain = super().layer_values(new, keys)
        return [values + (4.0 * new * d + 2 * d * d + 2 * d) * (i in heard) for i, values in enumerate(plain)]


NAMES = PUBLISHED | {
    "audio.layers": ("audio_inject_layers",),
    "audio.adain": ("enable_adain",),
    "audio.wav2vec.dim": ("audio_dim",),
    "audio.wav2vec.tokens": ("num_audio_token",),
}
FORMS = SUPPORTED | {
    "model_type": ("s2v",),
    "adain_mode": ("attn_norm",),
    "enable_motioner": (False,),
    "enable_framepack": (True,),
    "framepack_drop_mode": ("padd",),
    "zero_timestep": (True,),
}


def published(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a `config.json` tells; raises UserError."""
    return folder.sizes(said, NAMES, FORMS, "a speech-to-video model")


def check(model: ModelConfig) -> None:
    """Raises UserError where the model cannot be as it is configured."""
    if not model.reference:
        raise UserError("model.reference=false", "motion tokens stand beside a reference", "set model.reference=true")
