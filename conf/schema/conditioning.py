"""Networks of their own that conditions are made with: of prompts, of pictures, and of sound."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from conf import published
from conf.errors import positive
from conf.hub import found
from conf.settings import check_choices, one_of


@dataclass
class TextConfig:
    """How prompts become text states.

    `table`: the small encoder, one learned row per known word, or per hash bucket where no words are listed.
    `umt5`: a UMT5 encoder in files of its own. Where a model's folder has none, states come as tensors; a model with
    random weights uses a random table in its place.
    """

    kind: str = one_of(("table", "umt5"), "table")
    """The encoder."""
    words: list[str] = field(default_factory=list)
    """That a table knows; none: it hashes words."""
    examples: list[str] = field(default_factory=list)
    """Prompts that are worth trying, for whoever chooses one by a button."""
    buckets: int = 256
    """Rows of a table that hashes words."""
    checkpoint: str | None = None
    """UMT5's weights: the original file, a transformers folder, or a model's folder that holds either; null: those in
    the folder that model.checkpoint names."""
    tokenizer: str | None = None
    """The tokenizer's folder; null: the one beside or among the weights, or inside their file."""

    def __post_init__(self):
        check_choices(self, "model.text.")
        positive("model.text.buckets", self.buckets, most=10_000_000)
        self.checkpoint, self.tokenizer = found(self.checkpoint), found(self.tokenizer)

    def beside(self, model: str | None) -> TextConfig:
        """This, with the files that `model` (a checkpoint) brings, where none are named."""
        root = self.checkpoint or model
        if self.kind != "umt5" or root is None:
            return self
        weights = published.part(root, "text_encoder") or self.checkpoint
        if weights is None:
            return self
        tokenizer = self.tokenizer or published.tokenizer(root, weights, Path(weights).parent)
        return replace(self, checkpoint=str(weights), tokenizer=tokenizer and str(tokenizer))


@dataclass
class ClipConfig:
    """How a picture becomes rows of cross-attention, for networks that read such: CLIP's vision tower.

    Without its files rows come as tensors.
    """

    checkpoint: str | None = None
    """Its weights: the original file, a transformers folder, or a model's folder that holds either; null: those in the
    folder that model.checkpoint names."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)

    def beside(self, model: str | None) -> ClipConfig:
        """This, with the file that `model` (a checkpoint) brings, where none is named."""
        root = self.checkpoint or model
        weights = root and (published.part(root, "image_encoder") or self.checkpoint)
        return replace(self, checkpoint=str(weights)) if weights else self


@dataclass
class Wav2VecConfig:
    """Sound as the hidden states of a wav2vec2 model."""

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
            positive(f"model.network.audio.wav2vec.{name}", getattr(self, name), most=100_000)
