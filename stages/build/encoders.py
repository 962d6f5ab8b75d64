"""What turns prompts, pictures and sound into what the network takes."""

from __future__ import annotations

import torch
from torch import nn

from conf import published
from conf.errors import UserError
from conf.schema import ModelConfig, Wav2VecConfig
from stages.build.checkpoint import filled, text_encoder
from stages.build.dtype import torch_dtype
from stages.encode.clip import ClipEncoder
from stages.encode.text import TextEncoder
from stages.encode.umt5 import Umt5Encoder
from stages.encode.wav2vec import Wav2Vec
from stages.inputs import Input


def build_text_encoder(
    model: ModelConfig, prompt: Input, device: torch.device | str = "cpu"
) -> TextEncoder | Umt5Encoder | None:
    """The encoder of the input `prompt` (a small one stays on the CPU: it runs once per prompt); None where its rows
    have to be given."""
    if model.text.checkpoint:
        # float16 is too narrow for T5.
        dtype = torch.float32 if model.dtype == "float16" else torch_dtype(model.dtype)
        tokens, width = prompt.shape
        return Umt5Encoder(model.text.checkpoint, model.text.tokenizer, width, tokens, dtype, device)
    part = text_encoder(model)
    return filled(part.make(), model, part.prefix) if part else None


def build_image_encoder(model: ModelConfig, one: Input, device: torch.device | str = "cpu") -> ClipEncoder | None:
    """The encoder of an epoch's input that is made of a picture; None where its rows have to be given."""
    if not model.clip.checkpoint:
        return None
    return ClipEncoder(model.clip.checkpoint, *one.shape, torch_dtype(model.dtype), device)


def build_input_encoder(model: ModelConfig, one: Input, device: torch.device | str = "cpu") -> nn.Module | None:
    """The encoder of an input that comes with every chunk; None: it has none."""
    return filled(one.encoder.make().to(device), model, one.encoder.prefix) if one.encoder else None


def build_wav2vec(model: ModelConfig, config: Wav2VecConfig, device: torch.device | str = "cpu") -> Wav2Vec:
    """What turns sound into features, in files of its own: those named, or those in the model's folder."""
    beside = published.part(model.checkpoint, "audio_encoder") if model.checkpoint else None
    folder = config.checkpoint or beside
    if folder is None and model.checkpoint is not None:
        raise UserError(
            "model.network.audio.wav2vec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no audio encoder",
            "name a wav2vec2 folder, or give audio_features in source.tensors",
        )
    return Wav2Vec(config, folder, model.init_seed, device)
