"""Arithmetic of a model's layers, from its sizes alone: for estimates where nothing was measured."""

from __future__ import annotations

from conf.codecs import declared
from conf.schema import Config
from runtime.encoders import Picture
from runtime.rule_costs import Counting, RuleCost
from stages.build import TEMPORAL_STRIDE, torch_dtype


def rule_cost(config: Config) -> RuleCost:
    """What a chunk's passes cost in steady running."""
    model, picture = config.model, Picture.of(config.model, config.stream)
    return Counting(model, picture.rows * picture.columns, torch_dtype(model.dtype).itemsize).chunk()


def layer_flops(config: Config) -> tuple[float, ...]:
    """Floating point operations of every layer in one step, the ring full: over one chunk, or over all those that are
    denoised together."""
    return tuple(work.flops for work in rule_cost(config).step.layers)


def decoded_pixels(config: Config) -> int:
    """Pixels of the frames of one chunk, where the decoder is timed by them; else 0."""
    if not declared(config.model.codec.kind).timed_by_pixels or not config.sink.needs_frames:
        return 0
    picture = Picture.of(config.model, config.stream)
    return config.model.chunk_frames * TEMPORAL_STRIDE * picture.height * picture.width
