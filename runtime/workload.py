"""A model as a plan sees it: counts and bytes, known before anything loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from conf.schema import Config, ModelConfig
from parallel.capability import undivided
from parallel.cuts import Logged
from parallel.plan import Workload
from runtime.encoders import Picture, frames_of
from runtime.fast import decoder_bytes
from runtime.rule_costs import frames_written
from runtime.versions import versions
from stages.build import decoder_of, encoder_of, encoders_in_file, network_class, torch_dtype
from stages.codec.base import parameter_bytes
from stages.denoise.bank import Bank
from stages.denoise.layout import LATENT, PLACE, TOKEN, Layout
from stages.denoise.schedule import schedule_of
from stages.encode import clip, umt5
from stages.inputs import encodes, inputs_of, made_of, with_chunk
from stages.weights import outline

FLOAT = 4
ENTERED, SOUND = 4096, 16000 * FLOAT
"""Bytes of a chunk's journal beside sound, at most nearly always; and of a second of sound."""


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
    if model.clip.checkpoint and any(one.described for one in inputs):
        encoders += clip.parameter_count(model.clip.checkpoint) * dtype.itemsize
    codec = _meta(lambda: encoder_of(model.codec)) * scale if encodes(model, inputs) else 0
    decoder = _meta(lambda: decoder_of(model.codec)) * scale
    layout = Layout.of(model, tokens)
    latent = network.in_channels * model.chunk_frames * picture.latent[0] * picture.latent[1] * dtype.itemsize
    # What only `source.tensors` can give is left out: most streams have none of it.
    given = sum(one.bytes(dtype, picture.latent) for one in with_chunk(inputs) if one.made)
    together = model.step_count if model.rule.joint else 1
    most = max(len(model.frames(chunk)) for chunk in (0, 1))
    return Workload(
        steps=model.step_count,
        layers=n,
        context=model.context,
        versions=versions(model),
        decodes=config.sink.needs_frames,
        posts=config.sink.needs_frames and config.post.factor > 1,
        picture_bytes=3 * frames_of(model, 1)[1] * picture.height * picture.width * dtype.itemsize,
        latent_bytes=latent * together + given,
        hidden_bytes=together * model.chunk_frames * tokens * network.dim * dtype.itemsize,
        layer_bytes=tuple(layers(i, i + 1) - bare - _end(i, n, ends) for i in range(n)),
        range_bytes=bare,
        first_bytes=ends[0],
        last_bytes=ends[1],
        encode_bytes=encoders + round(codec),
        decode_bytes=round(decoder) if config.sink.needs_frames else 0,
        bank_bytes=Bank.bytes_needed(layout, 1, network.heads, network.head_dim, dtype, **model.choice),
        shared_bytes=tuple(_adapter_bytes(model, layout, layer, dtype, PLACE) for layer in range(n)),
        whole_bytes=tuple(_adapter_bytes(model, layout, layer, dtype, LATENT) for layer in range(n)),
        once_bytes=network.once_values(most * tokens, most) * dtype.itemsize,
        states_bytes=network.states_values() * dtype.itemsize,
        recorded=config.device.graphs != "never" and config.device.may_be_gpu,
        heads=network.heads,
        tokens_per_frame=math.gcd(tokens, layout.fixed),
        recache_chunks=model.recache_chunks,
        undivided=undivided(model),
    )


def absent(model: ModelConfig) -> dict[str, int]:
    """Bytes of the published encoders that a model is made for and that it names no file of, by the setting that would
    name it: a run without them shows the network nothing of a prompt, or a picture."""
    inputs, dtype, found = inputs_of(model), torch_dtype(model.dtype), {}
    prompt = made_of(inputs, "prompt")
    if prompt and model.text.kind == "umt5" and not model.text.checkpoint:
        found["model.text.checkpoint"] = umt5.PUBLISHED.get(prompt.shape[1], 0) * dtype.itemsize
    if not model.clip.checkpoint:
        for one in (one for one in inputs if one.described):
            found["model.clip.checkpoint"] = clip.PUBLISHED.get(one.shape, 0) * dtype.itemsize
    return {setting: size for setting, size in found.items() if size}


@torch.inference_mode()
def logged(config: Config) -> Logged:
    """What cuts keep of one of a run's streams."""
    model, picture, dtype = config.model, Picture.of(config.model, config.stream), torch_dtype(config.model.dtype)
    network, layout = model.network, Layout.of(model, picture.rows * picture.columns)

    def banks(layer: int) -> Iterator[tuple[str, Layout, int]]:
        """(what has entries, where they are, bytes of one's keys and values) of each of a layer's banks."""
        yield TOKEN, layout, 2 * network.heads * network.head_dim * dtype.itemsize
        for a in network.adapters:
            if layer in a.layers:
                yield a.each, Layout.of_adapter(model, a, layout.tokens), 2 * a.heads * a.head_dim * dtype.itemsize

    def sums(of: Callable[[Layout], int], shares: bool) -> tuple[float, ...]:
        """Of the banks that processes share, or of the others, by layer."""
        layers = (banks(layer) for layer in range(network.layers))
        return tuple(float(sum(of(o) * n for each, o, n in found if (each != LATENT) == shares)) for found in layers)

    inputs = with_chunk(inputs_of(model))
    latent = network.in_channels * model.chunk_frames * picture.latent[0] * picture.latent[1] * dtype.itemsize
    given = sum(one.bytes(dtype, picture.latent) for one in inputs if one.made)
    decoder = 0
    if config.sink.needs_frames:
        with outline():
            made = decoder_of(model.codec)
        decoder = decoder_bytes(made.to(dtype), model, picture, torch.device("meta"))
    seconds = frames_of(model, 1)[1] / model.fps
    written = frames_written(model, layout)
    # A choice among tokens is asked for by queries, of heads as keys are, and counts its tokens in one number each.
    choice = {"recalled": 0, "chosen": 0} | model.choice
    asked = float(choice["recalled"] * layout.tokens * network.heads * network.head_dim * dtype.itemsize)
    uses = float(choice["chosen"] * layout.tokens * torch.int32.itemsize)
    return Logged(
        written=tuple(mean for mean, _ in written),
        most=tuple(most for _, most in written),
        shared=sums(lambda own: own.tokens, True),
        whole=sums(lambda own: own.tokens, False),
        # Keys of the attention sink's frames are kept once, as they were before they were turned to a position.
        shared_rest=tuple(rest + asked for rest in sums(lambda own: own.size, True)),
        whole_rest=tuple(rest + uses for rest in sums(lambda own: own.size, False)),
        every_shared=asked,
        every_whole=uses,
        # Where chunks are denoised together, those that are not finished are kept with the one that is.
        finished=float(latent * (model.step_count if model.rule.joint else 1) + given),
        kept=schedule_of(model).kept,
        decoder=float(decoder),
        entered=ENTERED + seconds * SOUND,
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
