"""A model as a plan sees it: counts and bytes, known before anything loads."""

from __future__ import annotations

import math

import torch

from conf.schema import Config, ModelConfig
from parallel.plan import Workload
from runtime.encoders import Picture, frames_of
from runtime.versions import versions
from stages.build import decoder_of, encoder_of, encoders_in_file, network_class, torch_dtype
from stages.codec.base import parameter_bytes
from stages.denoise.bank import LATENT, PLACE, Bank, Layout
from stages.encode import umt5
from stages.inputs import inputs_of, with_chunk
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
            part = network_class(model)(network, range(start, stop)).to(dtype)
            return parameter_bytes(part.fuse().quantise(model.fp8) if model.fp8 else part)

    n, tokens = network.layers, picture.rows * picture.columns
    # A range of no layers, in the middle, holds what every range holds.
    bare = layers(1, 1) if n > 1 else 0
    ends = layers(0, 0) - bare, layers(n, n) - bare
    inputs = inputs_of(model)
    # Encoders of their own stay in float32.
    encoders = sum(_meta(encoder.make) for encoder in encoders_in_file(model).values())
    encoders += sum(one.ear.values for one in inputs if one.ear) * FLOAT
    if model.text.checkpoint:
        encoders += umt5.parameter_count(model.text.checkpoint) * dtype.itemsize
    still = _meta(lambda: encoder_of(model.codec)) * scale if model.reference else 0
    decoder = _meta(lambda: decoder_of(model.codec)) * scale
    layout = Layout.of(model, tokens)
    latent = network.in_channels * model.chunk_frames * picture.latent[0] * picture.latent[1] * dtype.itemsize
    # What only `source.tensors` can give is left out: most streams have none of it.
    given = sum(one.bytes(dtype, picture.latent) for one in with_chunk(inputs) if one.source)
    return Workload(
        steps=model.step_count,
        layers=n,
        context=model.context,
        versions=versions(model),
        decodes=config.sink.needs_frames,
        posts=config.sink.needs_frames and config.post.factor > 1,
        picture_bytes=3 * frames_of(model, 1)[1] * picture.height * picture.width * dtype.itemsize,
        latent_bytes=latent + given,
        hidden_bytes=model.chunk_frames * tokens * network.dim * dtype.itemsize,
        layer_bytes=tuple(layers(i, i + 1) - bare - _end(i, n, ends) for i in range(n)),
        range_bytes=bare,
        first_bytes=ends[0],
        last_bytes=ends[1],
        encode_bytes=encoders + round(still),
        decode_bytes=round(decoder) if config.sink.needs_frames else 0,
        bank_bytes=Bank.bytes_needed(layout, 1, network.heads, network.head_dim, dtype),
        shared_bytes=tuple(_adapter_bytes(model, layout, layer, dtype, PLACE) for layer in range(n)),
        whole_bytes=tuple(_adapter_bytes(model, layout, layer, dtype, LATENT) for layer in range(n)),
        states_bytes=network.states_values() * dtype.itemsize,
        recorded=config.device.graphs != "never" and config.device.may_be_gpu,
        heads=network.heads,
        tokens_per_frame=math.gcd(tokens, layout.fixed),
        recache_chunks=model.recache_chunks,
    )


def _adapter_bytes(model: ModelConfig, layout: Layout, layer: int, dtype: torch.dtype, each: str) -> int:
    """Banks of one layer's adapters of a kind, at one level."""
    return sum(
        Bank.bytes_needed(Layout.of_adapter(model, a, layout.tokens), 1, a.heads, a.head_dim, dtype)
        for a in model.network.adapters
        if layer in a.layers and a.each == each
    )


def _end(layer: int, layers: int, ends: tuple[int, int]) -> int:
    """What a range of this one layer holds only because it is at an end of the network."""
    return ends[0] * (layer == 0) + ends[1] * (layer == layers - 1)
