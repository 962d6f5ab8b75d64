"""Arithmetic of a model's layers, from its sizes alone: for estimates where nothing was measured."""

from __future__ import annotations

from conf.codecs import declared
from conf.schema import Config
from runtime.encoders import Picture
from stages.build import TEMPORAL_STRIDE
from stages.denoise.layout import Layout


def layer_flops(config: Config) -> tuple[float, ...]:
    """Floating point operations of every layer in one step over one chunk, the ring full."""
    model, picture = config.model, Picture.of(config.model, config.stream)
    tokens = picture.rows * picture.columns
    return tuple(model.network.layer_flops(model.chunk_frames * tokens, Layout.of(model, tokens).size))


def decoded_pixels(config: Config) -> int:
    """Pixels of the frames of one chunk, where the decoder is timed by them; else 0."""
    if not declared(config.model.codec.kind).timed_by_pixels or not config.sink.needs_frames:
        return 0
    picture = Picture.of(config.model, config.stream)
    return config.model.chunk_frames * TEMPORAL_STRIDE * picture.height * picture.width
