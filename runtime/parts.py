"""What one worker of a plan holds: the parts of its cells and stages, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import torch

from conf.schema import Config
from parallel.plan import Plan
from runtime.conditioning import Conditioning, Picture
from runtime.outputs import Outputs
from stages.build import build_decoder, build_network, choose_device, torch_dtype
from stages.codec.base import Decoder, parameter_bytes
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import Sampler


@dataclass
class Parts:
    """A worker's holdings.

    Attributes:
        device, dtype: of its network.
        sampler: the step list.
        stream_ids: names of the streams, which key their draws.
        denoisers: per block held.
        conditionings: per stream, on the encode worker.
        decoder, outputs: on the decode worker.
        weight_bytes: of everything held.
    """

    device: torch.device
    dtype: torch.dtype
    sampler: Sampler
    stream_ids: list[str]
    denoisers: dict[int, Denoiser] = field(default_factory=dict)
    conditionings: list[Conditioning] = field(default_factory=list)
    decoder: Decoder | None = None
    outputs: list[Outputs] = field(default_factory=list)
    weight_bytes: int = 0


def stream_ids(config: Config) -> list[str]:
    """Names of a run's streams: the one that was asked for, or 0 .. count - 1."""
    return [config.stream.id] if config.stream.count == 1 else [str(i) for i in range(config.stream.count)]


def open_conditionings(config: Config, stop: threading.Event, device: torch.device, stdin: BinaryIO | None = None):
    """Sources and encoders of every stream. Cheap to open, and where bad input shows: do it before weights load."""
    return [
        Conditioning(config.model, replace(config.stream, id=name), config.source, stop, device, stdin)
        for name in stream_ids(config)
    ]


def open_outputs(config: Config, sound: bool) -> list[Outputs]:
    """Sinks of every stream."""
    picture, several = Picture.of(config.model, config.stream), config.stream.count > 1
    return [
        Outputs(config.sink, config.model.fps, picture, sound, f".{i}" if several else "")
        for i in range(config.stream.count)
    ]


def load_parts(
    plan: Plan,
    index: int,
    config: Config,
    stop: threading.Event,
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Parts:
    """Open and load what worker `index` needs.

    Args:
        plan, index, config: the run, and which worker of it this is.
        stop: ends sampling when set.
        device: None: what `device` in the configuration means here.
        stdin: where live sources read; None: standard input.
        progress: told what is being loaded.

    Raises:
        UserError: a source, weight file or output cannot be used.
    """
    device = choose_device(config.device.kind) if device is None else device
    torch.set_num_threads(config.device.threads)
    model, picture = config.model, Picture.of(config.model, config.stream)
    parts = Parts(device, torch_dtype(model.dtype), Sampler.of(model), stream_ids(config))
    if index == plan.encode:
        progress("sources and encoders")
        parts.conditionings = open_conditionings(config, stop, device, stdin)
        first = parts.conditionings[0]
        encoders = [e for e in (first.text_encoder, first.audio_encoder) if e is not None]
        parts.weight_bytes += sum(parameter_bytes(e) for e in encoders)
    for block in plan.blocks_of(index):
        layers = plan.blocks[block]
        progress(f"layers {layers.start}-{layers.stop - 1}")
        network = build_network(model, device, layers)
        parts.denoisers[block] = Denoiser(model, network, picture.rows, picture.columns)
        parts.weight_bytes += parameter_bytes(network)
    if index == plan.decode and config.sink.needs_frames:
        progress("decoder")
        parts.decoder = build_decoder(model, device)
        parts.weight_bytes += parameter_bytes(parts.decoder)
    return parts
