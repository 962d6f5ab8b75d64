"""What turns prompts and sound into what the network takes."""

from __future__ import annotations

import torch

from conf import published
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.build.checkpoint import audio_encoder, filled, text_encoder
from stages.build.device import torch_dtype
from stages.encode.audio import AudioEncoder
from stages.encode.causal_audio import CausalAudioEncoder
from stages.encode.text import TextEncoder
from stages.encode.umt5 import Umt5Encoder
from stages.encode.wav2vec import Wav2Vec


def build_text_encoder(model: ModelConfig, device: torch.device | str = "cpu") -> TextEncoder | Umt5Encoder | None:
    """The prompt's encoder (a small one stays on the CPU: it runs once per prompt); None where states are given."""
    if model.text.checkpoint:
        # float16 is too narrow for T5.
        dtype = torch.float32 if model.dtype == "float16" else torch_dtype(model.dtype)
        sizes = model.network.text_dim, model.network.text_tokens
        return Umt5Encoder(model.text.checkpoint, model.text.tokenizer, *sizes, dtype, device)
    part = text_encoder(model)
    return filled(part[0], model, part[1]) if part else None


def build_audio_encoder(
    model: ModelConfig, device: torch.device | str = "cpu"
) -> AudioEncoder | CausalAudioEncoder | None:
    """The sound's encoder, if the model listens."""
    part = audio_encoder(model)
    return filled(part[0].to(device), model, part[1]) if part else None


def build_wav2vec(model: ModelConfig, device: torch.device | str = "cpu") -> Wav2Vec | None:
    """What turns sound into features, where the model has a network for it."""
    config = model.network.audio.wav2vec if model.network.audio else None
    if config is None:
        return None
    beside = published.part(model.checkpoint, "audio_encoder") if model.checkpoint else None
    folder = config.checkpoint or beside
    if folder is None and model.checkpoint is not None:
        raise UserError(
            "model.network.audio.wav2vec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no audio encoder",
            "name a wav2vec2 folder, or give audio_features in source.tensors",
        )
    return Wav2Vec(config, folder, model.init_seed, device)
