"""What conditions a model: its prompts and its sound."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from conf import published
from conf.errors import UserError, choice, positive
from conf.paths import found


@dataclass
class TextConfig:
    """How prompts become text states.

    `table`: the small encoder, one learned row per known word, or per hash bucket where no words are listed.
    `umt5`: a UMT5 encoder in files of its own. Where a model's folder has none, states come as tensors; a model with
    random weights uses a random table in its place.
    """

    kind: str = "table"
    words: list[str] = field(default_factory=list)
    buckets: int = 256
    checkpoint: str | None = None
    """UMT5's weights: the original file, a transformers folder, or a model's folder that holds either; null: those in
    the folder that model.checkpoint names."""
    tokenizer: str | None = None
    """The tokenizer's folder; null: the one beside the weights."""

    def __post_init__(self):
        choice("model.text.kind", self.kind, ("table", "umt5"))
        self.checkpoint, self.tokenizer = found(self.checkpoint), found(self.tokenizer)

    def beside(self, model: str | None) -> TextConfig:
        """This, with the files that `model` (a checkpoint) brings, where none are named."""
        root = self.checkpoint or model
        if self.kind != "umt5" or root is None:
            return self
        weights = published.part(root, "text_encoder") or self.checkpoint
        if weights is None:
            return self
        places = (published.part(folder, "tokenizer") for folder in (root, Path(weights).parent))
        tokenizer = self.tokenizer or next((str(place) for place in places if place), None)
        return replace(self, checkpoint=str(weights), tokenizer=tokenizer)


@dataclass
class Wav2VecConfig:
    """Sound as the hidden states of a wav2vec2 model (Wan2.2-S2V)."""

    checkpoint: str | None = None
    """A folder as transformers writes it; null: the folder of that name in `model.checkpoint`, or random weights."""
    layers: int = 25
    """Hidden states: the embedding's and every layer's."""
    dim: int = 1024
    """Width of a hidden state."""
    tokens: int = 4
    """Audio tokens made for every latent frame, besides a learned one."""
    window_s: float = 2.4
    """Live: seconds of sound that are looked at for a chunk, its own included."""
    whole_file: bool = False
    """Whether a file is listened to at once, to its end, before the stream begins, instead of as it goes."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)
        for name in ("layers", "dim", "tokens", "window_s"):
            positive(f"model.network.audio.wav2vec.{name}", getattr(self, name))


@dataclass
class AudioConfig:
    """Sound as causal log-mel features, cross-attended per latent frame after some of the layers."""

    layers: list[int] = field(default_factory=list)
    """Network layers followed by an audio cross-attention."""
    dim: int = 64
    """Width of an audio token; there is one token per video frame. With `wav2vec` it is the network's width."""
    bands: int = 32
    """Mel bands of a feature row."""
    rows_per_frame: int = 4
    """Feature rows per video frame."""
    lookahead_s: float = 0.0
    """How far a frame's features may look ahead of the frame's end."""
    adain: bool = False
    """Use AdaIN: one more audio token per latent frame scales and shifts the queries."""
    wav2vec: Wav2VecConfig | None = None
    """Listen with wav2vec2 instead of log-mel features."""

    def __post_init__(self):
        if self.adain and not self.wav2vec:
            raise UserError("model.network.audio.adain=true", "only wav2vec gives the token it needs", "set it false")

    @property
    def features(self) -> int:
        """Features per video frame, in each of `feature_layers`."""
        return self.wav2vec.dim if self.wav2vec else self.bands * self.rows_per_frame

    @property
    def feature_layers(self) -> int:
        """Layers that features come from."""
        return self.wav2vec.layers if self.wav2vec else 1

    @property
    def tokens(self) -> int:
        """Audio tokens of a latent frame."""
        return self.wav2vec.tokens + 1 + self.adain if self.wav2vec else 4

    @property
    def names(self) -> dict[int, str]:
        """What the part after a layer is called in a checkpoint: S2V's are counted, ours have the layer's number."""
        return {layer: str(count if self.wav2vec else layer) for count, layer in enumerate(self.layers)}
