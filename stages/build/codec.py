"""The encoder and the decoder of every codec."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from conf.errors import UserError
from conf.paths import is_file
from conf.schema import CodecConfig, ModelConfig
from stages.build.device import torch_dtype
from stages.codec import taehv, wan_keys
from stages.codec.base import Decoder, Encoder
from stages.codec.small import SmallDecoder, SmallEncoder, load_half
from stages.codec.taehv import TaehvDecoder
from stages.codec.wan import WanDecoder, WanEncoder
from stages.weight_file import WeightFile
from stages.weights import check, empty, initialise, load, outline

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
"""Of every codec here: video pixels per latent pixel, video frames per latent frame."""


def wan_width(codec: CodecConfig) -> int:
    """Channels of a Wan VAE at full resolution: as its file has them, without one as configured."""
    if codec.checkpoint:
        entries = _wan_file(codec).entries
        for key in ("decoder.head.0.gamma", "encoder.conv1.bias"):
            if key in entries:
                return entries[key].shape[0]
    return codec.width


def _wan_file(codec: CodecConfig) -> WeightFile:
    return WeightFile(codec.checkpoint, "model.codec.checkpoint", wan_keys.original_name)


def _build_taehv(model: ModelConfig, device: torch.device) -> TaehvDecoder:
    codec = model.codec
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null", "a taehv decoder needs its weights", "give taew2_1.pth, or codec.kind=wan"
        )
    module = empty(TaehvDecoder, device, torch_dtype(model.dtype))
    if codec.checkpoint is None:
        initialise(module, model.init_seed, "codec.decoder.")
    else:
        taehv.load(module.requires_grad_(False), WeightFile(codec.checkpoint, "model.codec.checkpoint"))
    return module.to(memory_format=torch.channels_last)


def _build_wan(model: ModelConfig, codec: CodecConfig, half: str, device: torch.device) -> nn.Module:
    halves = {"encoder": WanEncoder, "decoder": WanDecoder}
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no VAE",
            "give Wan2.1_VAE.pth, or the vae folder of a diffusers model (as model.codec.vae beside a taehv decoder)",
        )
    width = wan_width(codec)
    module = empty(lambda: halves[half](base=width), device, torch_dtype(model.dtype))
    if codec.checkpoint is None:
        initialise(module, model.init_seed, f"codec.{half}.")
        return module
    with outline():
        names = {k: v.shape for kind in halves.values() for k, v in kind(base=width).state_dict().items()}
    file = _wan_file(codec)
    check(file, names)
    load(module, file)
    return module


def _build_codec(model: ModelConfig, half: str, device: torch.device) -> nn.Module:
    codec: CodecConfig = model.codec
    if codec.kind == "taehv" and half == "decoder":
        module = _build_taehv(model, device)
    elif codec.kind in ("wan", "taehv"):
        wan = codec if codec.kind == "wan" else replace(codec, checkpoint=codec.vae)
        module = _build_wan(model, wan, half, device)
    elif codec.checkpoint:
        if not is_file(codec.checkpoint):
            raise UserError(f"model.codec.checkpoint={codec.checkpoint}", "no such file", "check the path")
        module = load_half(codec.checkpoint, half, codec.statistics)
    else:
        module = {"encoder": SmallEncoder, "decoder": SmallDecoder}[half]()
        initialise(module, model.init_seed, f"codec.{half}.")
    return module.eval().requires_grad_(False).to(device, torch_dtype(model.dtype))


def build_encoder(model: ModelConfig, device: torch.device) -> Encoder:
    """Pixels to latents, for the reference."""
    return _build_codec(model, "encoder", device)


def build_decoder(model: ModelConfig, device: torch.device) -> Decoder:
    """Latents to pixels."""
    return _build_codec(model, "decoder", device)


def video_frames(codec: CodecConfig, latents: int, first: bool) -> int:
    """Video frames of `latents` latent frames, known without loading a decoder.

    A Wan decoder's first latent of a stream is one frame, unless it was primed; every other latent is four.
    """
    lone = codec.kind in ("wan", "taehv") and first and not codec.prime
    return TEMPORAL_STRIDE * latents - (TEMPORAL_STRIDE - 1 if lone else 0)
