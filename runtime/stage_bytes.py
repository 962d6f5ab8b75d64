"""What stages beside cells take of a device's memory beside their weights, known before anything loads.

All that a codec keeps and makes is pictures, so a few places of a latent tell of all of them: it is run there, with
weights of no meaning, on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from conf.schema import CodecConfig, Config
from parallel.plan import StageBytes, Taken
from runtime.decoding import Decoding
from runtime.encoders import STILLS, Picture, first_pictures, pictures_of, still_latents
from stages.build import SPATIAL_STRIDE, TEMPORAL_STRIDE, decoder_of, encoder_of, torch_dtype, video_frames
from stages.inputs import REFERENCE, Axis, inputs_of, on
from stages.meter import Meter
from stages.post import post_of, to_pictures
from stages.weights import empty

SIDE = 2
"""Rows and columns of places that are run: a single one lies in memory as in any layout, and is copied to none."""
SETTLED = 3
"""Calls with which a codec has come to what it takes for ever."""


@torch.inference_mode()
def stage_bytes(config: Config) -> StageBytes:
    """What every stage of a run takes beside its weights, without what kernels take inside themselves.

    A video is encoded by every stream for itself, and what streams begin with one picture at a time. Decode and post
    are one thread for all streams, output is one for each.
    """
    model, dtype = config.model, torch_dtype(config.model.dtype)
    codec, inputs, channels = model.codec, inputs_of(model), model.network.in_channels
    each = once = kept = 0
    if stills := still_latents(model):
        once = _encoding(codec, dtype, (video_frames(replace(codec, prime=0), stills, first=True),))
        kept = STILLS * stills * channels * SIDE**2 * dtype.itemsize
    if any(one.pictured for one in on(inputs, Axis.LATENT)):
        grey = (TEMPORAL_STRIDE,) * SETTLED
        once = max(once, _encoding(codec, dtype, (first_pictures(model), *grey), kept_before=True))
    if model.noise_scale is not None:
        each = _encoding(codec, dtype, tuple(pictures_of(model, chunk) for chunk in range(SETTLED)))
    found = [Taken(each, once + kept)]
    if config.sink.needs_frames:
        primed = codec.prime if any(one.primes for one in inputs) else 0
        chunks = tuple(len(model.frames(chunk)) for chunk in range(SETTLED))
        decode, frames = _decoding(codec, dtype, channels, primed, chunks)
        post = 0
        if larger := post_of(config):
            post, frames = _metered(larger, frames)
        output, _ = _metered(to_pictures, frames)
        found += [decode, Taken(once=post), Taken(each=output)]
    places = math.prod(Picture.of(model, config.stream).latent)
    return StageBytes(*(Taken(*(places * size // SIDE**2 for size in one)) for one in found))


@lru_cache(maxsize=32)
def _encoding(codec: CodecConfig, dtype: torch.dtype, pictures: tuple[int, ...], kept_before: bool = False) -> int:
    """Most bytes while so many small pictures are encoded call after call, the last of them and what is remembered
    included.

    Args:
        kept_before: whether what was remembered before a call stays until the next.
    """
    encoder = empty(lambda: encoder_of(codec), "cpu", dtype)
    meter, state, pixels = Meter(), encoder.start(), SIDE * SPATIAL_STRIDE
    for count in pictures:
        before = list(state.cache) if kept_before else []
        with meter:
            encoder(torch.zeros(1, 3, count, pixels, pixels, dtype=dtype), state)
        del before
    return meter.peak


@lru_cache(maxsize=32)
def _decoding(
    codec: CodecConfig, dtype: torch.dtype, channels: int, primed: int, latents: tuple[int, ...]
) -> tuple[Taken, Tensor]:
    """What a decoder takes while chunks of so many small latents are decoded, behind as many as it is primed with,
    and the last frames."""
    meter, decoder = Meter(), empty(lambda: decoder_of(codec), "cpu", dtype)
    decoding = Decoding(decoder, decoder.start(), REFERENCE, primed)
    with meter:
        decoding.prime({REFERENCE: torch.zeros(1, channels, primed, SIDE, SIDE)})
        for count in latents:
            frames = decoding(torch.zeros(1, channels, count, SIDE, SIDE, dtype=dtype))
    return Taken(decoding.state.nbytes, meter.peak - decoding.state.nbytes), frames


def _metered(work: Callable[[Tensor], Any], frames: Tensor) -> tuple[int, Any]:
    """Most bytes while work is done on frames, they included; and what it gives."""
    meter = Meter()
    meter.hold([frames])
    with meter:
        made = work(frames)
    return meter.peak, made
