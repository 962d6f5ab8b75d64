"""A model's weight file, and how a part is filled from it: with its own weights and no others."""

from __future__ import annotations

import torch
from torch import nn

from conf.schema import ModelConfig
from stages.denoise.keys import original_name
from stages.denoise.network import Network
from stages.encode.audio import AudioEncoder
from stages.encode.causal_audio import CausalAudioEncoder
from stages.encode.text import TextEncoder
from stages.lora import Loras
from stages.weight_file import WeightFile
from stages.weights import check, initialise, load, outline


def text_encoder(model: ModelConfig) -> tuple[TextEncoder, str] | None:
    """The small text encoder without its weights, and where these lie in a model's file; None: it has none.

    A model with random weights reads prompts with a random table, too: it means as much as all else it does.
    """
    if model.text.checkpoint or (model.text.kind == "umt5" and model.checkpoint is not None):
        return None
    return TextEncoder(model.text, model.network.text_dim, model.network.text_tokens), "text_encoder."


def audio_encoder(model: ModelConfig) -> tuple[AudioEncoder | CausalAudioEncoder, str] | None:
    """The sound's encoder likewise; None for a model that does not listen."""
    audio = model.network.audio
    if audio and audio.wav2vec:
        sizes = audio.wav2vec.layers, audio.wav2vec.dim, model.network.dim, audio.wav2vec.tokens
        return CausalAudioEncoder(*sizes), "casual_audio_encoder."
    return (AudioEncoder(audio), "audio_encoder.") if audio else None


def whole(model: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every weight of a model's file, whoever holds it."""
    with outline():
        parts = filter(None, [(Network(model.network), ""), text_encoder(model), audio_encoder(model)])
    return {prefix + name: value.shape for part, prefix in parts for name, value in part.state_dict().items()}


class Checkpoint:
    """A model's weight file, checked against the whole model, and its LoRAs: what every part is filled from.

    Attributes:
        file: counts the bytes read.

    Raises:
        UserError: a file is missing, broken or of another model.
    """

    def __init__(self, model: ModelConfig, device: torch.device):
        names = whole(model)
        self.file = WeightFile(model.checkpoint, rename=original_name)
        check(self.file, names)
        self.loras = Loras(model.lora, names, model.lora_alpha, device) if model.lora else None

    def fill(self, module: nn.Module, prefix: str = "") -> None:
        """Read a module's own weights, and no others."""
        load(module, self.file, prefix, self.loras)


def filled(module: nn.Module, model: ModelConfig, prefix: str, checkpoint: Checkpoint | None = None) -> nn.Module:
    """`module` with its weights: from the checkpoint, or seeded by name."""
    if model.checkpoint is None:
        initialise(module, model.init_seed, prefix)
    else:
        device = next(module.parameters()).device
        (checkpoint or Checkpoint(model, device)).fill(module, prefix)
    return module.eval().requires_grad_(False)
