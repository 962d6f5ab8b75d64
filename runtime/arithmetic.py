"""Arithmetic of a model's layers, from its sizes alone: for estimates where nothing was measured."""

from __future__ import annotations

from conf.schema import Config
from runtime.encoders import Picture
from stages.build import TEMPORAL_STRIDE
from stages.denoise.bank import Layout


def layer_flops(config: Config) -> tuple[float, ...]:
    """Floating point operations of every layer in one step over one chunk, the ring full.

    Two per multiply-add: 2 n (4 d^2 + 2 d^2 + 2 d f) in the projections of self-attention, of cross-attention (text
    keys and values are kept) and in the feed-forward; 4 n m d in attention over m keys. Live Avatar's 40 layers at
    704x384 come to 121e12, 80e12 of it linear.
    """
    model, network = config.model, config.model.network
    picture = Picture.of(model, config.stream)
    tokens = picture.rows * picture.columns
    new, keys, d = model.chunk_frames * tokens, Layout.of(model, tokens).size, network.dim
    linear = 2 * new * (6 * d * d + 2 * d * network.ffn_dim)
    attention = 4 * new * d * (keys + network.text_tokens)
    sound = 2 * new * 2 * d * d
    heard = set(network.audio.layers) if network.audio else set()
    return tuple(float(linear + attention + sound * (i in heard)) for i in range(network.layers))


def decoded_pixels(config: Config) -> int:
    """Pixels of the frames of one chunk, where the Wan decoder makes them; else 0."""
    if config.model.codec.kind != "wan" or not config.sink.needs_frames:
        return 0
    picture = Picture.of(config.model, config.stream)
    return config.model.chunk_frames * TEMPORAL_STRIDE * picture.height * picture.width
