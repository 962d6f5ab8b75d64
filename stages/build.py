"""Parts of a model, made from its configuration: only the parts asked for, on the device asked for.

Weights come from the model's checkpoint where one is named, else they are random and seeded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from conf.errors import UserError
from conf.schema import CodecConfig, ModelConfig
from stages.codec.base import Decoder, Encoder
from stages.codec.small import SmallDecoder, SmallEncoder, load_half
from stages.codec.wan import WanDecoder, WanEncoder
from stages.denoise.keys import original_name
from stages.denoise.network import Network
from stages.encode.audio import AudioEncoder
from stages.encode.text import TextEncoder
from stages.weights import WeightFile, initialise, load

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
"""Of every codec here: video pixels per latent pixel, video frames per latent frame."""


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` to `torch.bfloat16`."""
    return getattr(torch, name)


def choose_device(kind: str) -> torch.device:
    """The device `device=auto|cpu|cuda` means here; an emulated one is the processor, which has little to do."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda", "no CUDA device is visible", "use device=cpu or device=auto")
    return torch.device("cuda" if kind in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def _filled(module: nn.Module, model: ModelConfig, prefix: str, rename=lambda name: name) -> nn.Module:
    """`module` with its weights: from the checkpoint, or seeded by name."""
    if model.checkpoint is None:
        initialise(module, model.init_seed, prefix)
    else:
        load(module, WeightFile(model.checkpoint), prefix, rename)
    return module.eval().requires_grad_(False)


def build_network(model: ModelConfig, device: torch.device, layers: range | None = None) -> Network:
    """The network, or the block range `layers` of it."""
    network = Network(model.network, layers, model.attention).to(device, torch_dtype(model.dtype))
    return _filled(network, model, "", original_name)


def build_text_encoder(model: ModelConfig) -> TextEncoder:
    """The prompt's encoder (CPU: it runs once per prompt)."""
    return _filled(TextEncoder(model.text, model.network.text_dim, model.network.text_tokens), model, "text_encoder.")


def build_audio_encoder(model: ModelConfig) -> AudioEncoder | None:
    """The sound's encoder, if the model listens."""
    return _filled(AudioEncoder(model.network.audio), model, "audio_encoder.") if model.network.audio else None


def _build_codec(model: ModelConfig, half: str, device: torch.device) -> nn.Module:
    codec: CodecConfig = model.codec
    if codec.kind == "small" and codec.checkpoint:
        if not Path(codec.checkpoint).is_file():
            raise UserError(f"model.codec.checkpoint={codec.checkpoint}", "no such file", "check the path")
        module = load_half(codec.checkpoint, half, codec.statistics)
    else:
        small = {"encoder": SmallEncoder, "decoder": SmallDecoder}[half]
        wan = {"encoder": WanEncoder, "decoder": WanDecoder}[half]
        module = wan(base=codec.width) if codec.kind == "wan" else small()
        if codec.checkpoint:
            load(module, WeightFile(codec.checkpoint, "model.codec.checkpoint"))
        else:
            initialise(module, model.init_seed, f"codec.{half}.")
    return module.eval().requires_grad_(False).to(device, torch_dtype(model.dtype))


def build_encoder(model: ModelConfig, device: torch.device) -> Encoder:
    """Pixels to latents, for the reference."""
    return _build_codec(model, "encoder", device)


def build_decoder(model: ModelConfig, device: torch.device) -> Decoder:
    """Latents to pixels."""
    return _build_codec(model, "decoder", device)


def video_frames(codec: str, latents: int, first: bool) -> int:
    """Video frames of `latents` latent frames, known without loading a decoder.

    The Wan VAE's first latent of a stream is one frame; every other latent is four.
    """
    return TEMPORAL_STRIDE * latents - (TEMPORAL_STRIDE - 1 if codec == "wan" and first else 0)
