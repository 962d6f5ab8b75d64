"""A model as a plan sees it: counts and bytes, known before anything loads."""

from __future__ import annotations

import math

from torch import nn

from conf.schema import CodecConfig, Config
from parallel.plan import Workload
from runtime.encoders import Picture, frames_of
from runtime.versions import versions
from stages.build import audio_encoder, text_encoder, torch_dtype, wan_width
from stages.codec.base import parameter_bytes
from stages.codec.small import SmallDecoder, SmallEncoder, read_config
from stages.codec.taehv import TaehvDecoder
from stages.codec.wan import WanDecoder, WanEncoder
from stages.denoise.bank import Bank, Layout
from stages.denoise.fp8 import quantise
from stages.denoise.network import Network
from stages.encode import umt5
from stages.encode.wav2vec import parameter_count
from stages.weights import outline

FLOAT = 4


def _meta(build) -> int:
    with outline():
        return parameter_bytes(build())


def describe(config: Config) -> Workload:
    """What a run's plan has to spread."""
    model, picture, dtype = config.model, Picture.of(config.model, config.stream), torch_dtype(config.model.dtype)
    network, scale = model.network, dtype.itemsize / FLOAT

    def layers(start: int, stop: int) -> int:
        with outline():
            part = Network(network, range(start, stop)).to(dtype)
            return parameter_bytes(quantise(part.fuse(), model.fp8) if model.fp8 else part)

    n, tokens = network.layers, picture.rows * picture.columns
    # A range of no layers, in the middle, holds what every range holds.
    bare = layers(1, 1) if n > 1 else 0
    ends = layers(0, 0) - bare, layers(n, n) - bare
    audio = _meta(lambda: audio_encoder(model)[0]) if network.audio else 0
    if network.audio and network.audio.wav2vec:
        audio += parameter_count(network.audio.wav2vec) * FLOAT
    text = _meta(lambda: prompts[0]) if (prompts := text_encoder(model)) else 0
    if model.text.checkpoint:
        text = umt5.parameter_count(model.text.checkpoint) * dtype.itemsize
    still = _meta(lambda: encoder_of(model.codec)) * scale if model.reference else 0
    decoder = decoder_of(model.codec)
    layout = Layout.of(model, tokens)
    latent = network.in_channels * model.chunk_frames * picture.latent[0] * picture.latent[1] * dtype.itemsize
    sound = model.chunk_frames * network.audio.tokens * network.audio_dim * dtype.itemsize if network.audio else 0
    return Workload(
        steps=model.step_count,
        layers=n,
        context=model.context,
        versions=versions(model),
        decodes=config.sink.needs_frames,
        posts=config.sink.needs_frames and config.post.factor > 1,
        picture_bytes=3 * frames_of(model, 1)[1] * picture.height * picture.width * dtype.itemsize,
        latent_bytes=latent + sound,
        hidden_bytes=model.chunk_frames * tokens * network.dim * dtype.itemsize,
        layer_bytes=tuple(layers(i, i + 1) - bare - _end(i, n, ends) for i in range(n)),
        range_bytes=bare,
        first_bytes=ends[0],
        last_bytes=ends[1],
        encode_bytes=audio + text + round(still),
        decode_bytes=round(parameter_bytes(decoder) * scale) if config.sink.needs_frames else 0,
        bank_bytes=Bank.bytes_needed(layout, 1, network.heads, network.head_dim, dtype),
        heads=network.heads,
        tokens_per_frame=math.gcd(tokens, layout.motion),
        recache_chunks=model.recache_chunks,
    )


def decoder_of(codec: CodecConfig) -> nn.Module:
    """A decoder of the sizes its file names."""
    if codec.kind == "wan":
        return WanDecoder(base=wan_width(codec))
    if codec.kind == "taehv":
        return TaehvDecoder()
    return SmallDecoder(read_config(codec.checkpoint) if codec.checkpoint else None)


def encoder_of(codec: CodecConfig) -> nn.Module:
    """The encoder likewise."""
    if codec.kind == "small":
        return SmallEncoder(read_config(codec.checkpoint) if codec.checkpoint else None)
    return WanEncoder(base=wan_width(codec))


def _end(layer: int, layers: int, ends: tuple[int, int]) -> int:
    """What a range of this one layer holds only because it is at an end of the network."""
    return ends[0] * (layer == 0) + ends[1] * (layer == layers - 1)
