"""The encoder and the decoder of every codec, each by its folder."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import nn

from conf.codecs import declared
from conf.families import CODECS, needed
from conf.schema import CodecConfig, ModelConfig
from stages.build.dtype import torch_dtype
from stages.codec.base import TEMPORAL_STRIDE, Decoder, Encoder


def _owner(codec: CodecConfig, half: str) -> tuple[ModuleType, CodecConfig]:
    """`codec.py` of the folder that has a half, and the configuration of that folder's codec."""
    if half == "encoder" and (other := declared(codec.kind).encoder):
        codec = replace(codec, kind=other, checkpoint=codec.vae)
    return needed(CODECS, codec.kind, "codec"), codec


def _make(codec: CodecConfig, half: str) -> nn.Module:
    folder, codec = _owner(codec, half)
    return folder.make(codec, half)


def _build(model: ModelConfig, half: str, device: torch.device) -> nn.Module:
    folder, codec = _owner(model.codec, half)
    dtype = torch_dtype(model.dtype)
    module = folder.build(model, codec, half, device, dtype)
    return module.eval().requires_grad_(False).to(device, dtype)


def encoder_of(codec: CodecConfig) -> nn.Module:
    """An encoder of the sizes that its file names, for who counts its weights."""
    return _make(codec, "encoder")


def decoder_of(codec: CodecConfig) -> nn.Module:
    """The decoder likewise."""
    return _make(codec, "decoder")


def build_encoder(model: ModelConfig, device: torch.device) -> Encoder:
    """Pixels to latents, for the reference."""
    return _build(model, "encoder", device)


def build_decoder(model: ModelConfig, device: torch.device) -> Decoder:
    """Latents to pixels."""
    return _build(model, "decoder", device)


def video_frames(codec: CodecConfig, latents: int, first: bool) -> int:
    """Video frames of `latents` latent frames, known without loading a decoder.

    A stream's first latent may be fewer frames, unless the decoder was primed; every other latent is four.
    """
    fewer = TEMPORAL_STRIDE - declared(codec.kind).first_frames if first and not codec.prime else 0
    return TEMPORAL_STRIDE * latents - fewer
