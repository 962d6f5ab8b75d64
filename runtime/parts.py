"""What one worker of a plan holds: the parts of its cells and stages, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

import torch

from conf.schema import Config
from parallel.plan import Plan
from runtime import emulated
from runtime.block import Block
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.orders import Open
from runtime.outputs import Outputs
from stages.build import build_decoder, build_network, choose_device, torch_dtype
from stages.codec.base import Decoder, parameter_bytes
from stages.compiled import compile_decoder, compile_network
from stages.denoise import fp8, graphs
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import Sampler


@dataclass
class Parts:
    """A worker's holdings.

    Attributes:
        device, dtype: of its network.
        sampler: the step list.
        denoisers: per block held.
        conditioning: makes what drives a stream, on the encode worker.
        prepared: what was made before the weights were loaded, by stream.
        decoder: on the decode worker, where pictures are wanted.
        weight_bytes: of everything held.
    """

    device: torch.device
    dtype: torch.dtype
    sampler: Sampler
    denoisers: dict[int, Denoiser] = field(default_factory=dict)
    conditioning: Callable[[Open], Conditioning] | None = None
    prepared: dict[int, Conditioning] = field(default_factory=dict)
    decoder: Decoder | None = None
    weight_bytes: int = 0

    @property
    def bank_bytes(self) -> int:
        """Banks of one stream here; 0 before one was opened."""
        return sum(denoiser.stream_bytes for denoiser in self.denoisers.values())

    def blocks(self, plan: Plan, worker: int) -> dict[int, Block]:
        """The blocks of a worker that holds these parts."""
        return {b: Block(denoiser, plan.steps_of(worker, b)) for b, denoiser in self.denoisers.items()}

    def prepare(self, orders: Iterable[Open]) -> None:
        """Open the sources of streams that are known already: it is cheap, and bad input shows before weights load.

        Raises:
            UserError: a source is missing, broken or does not fit the model.
        """
        for order in orders:
            self.prepared[order.stream] = self.conditioning(order)

    def conditioning_of(self, order: Open) -> Conditioning:
        """What drives a stream; raises as `prepare` does."""
        return self.prepared.pop(order.stream, None) or self.conditioning(order)


def open_outputs(config: Config, order: Open) -> Outputs:
    """Sinks of a stream."""
    picture = Picture.of(config.model, order.config)
    return Outputs(order.sink, config.model.fps, picture, config.model.network.audio is not None, order.keep)


def fast_denoiser(config: Config, device: torch.device, picture: Picture, layers: range | None = None) -> Denoiser:
    """A block of the network, loaded, and made as fast as the configuration asks.

    Raises:
        UserError: weights cannot be read, or the device cannot.
    """
    network = build_network(config.model, device, layers)
    denoiser = Denoiser(config.model, network, picture.rows, picture.columns)
    if config.model.fp8:
        fp8.quantise(network, config.model.fp8)
    if config.device.compile:
        compile_network(network)
    if config.device.graphs != "never":
        graphs.attach(denoiser, config.device.graphs)
    return denoiser


def fast_decoder(config: Config, device: torch.device) -> Decoder:
    """The decoder likewise."""
    decoder = build_decoder(config.model, device)
    return compile_decoder(decoder) if config.device.compile else decoder


def load_parts(
    plan: Plan,
    index: int,
    config: Config,
    orders: Iterable[Open] = (),
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    progress: Callable[[str], None] = lambda what: None,
    rank: int = 0,
) -> Parts:
    """Open and load what worker `index` needs.

    Args:
        plan, index, config: the run, and which worker of it this is.
        orders: streams that are known already.
        device: None: what `device` in the configuration means here.
        stdin: where live sources read; None: standard input.
        progress: told what is being loaded.
        rank: which of the worker's processes; the first is the worker, the others only share the passes of its blocks.

    Raises:
        UserError: a source, weight file or output cannot be used.
    """
    device = choose_device(config.device.kind) if device is None else device
    torch.set_num_threads(config.device.threads)
    model, picture = config.model, Picture.of(config.model, config.stream)
    parts = Parts(device, torch_dtype(model.dtype), Sampler.of(model))
    if config.device.kind == "emulated":
        return emulated.fill(parts, plan, index, config, orders, stdin)
    if index == plan.encode and rank == 0:
        progress("sources and encoders")
        encoders = Encoders(model, device)
        parts.conditioning = lambda order: Conditioning(
            model, order.config, order.source, encoders, stdin, state=order.keep and order.keep.state
        )
        parts.prepare(orders)
        if not parts.prepared:
            encoders.load()
        parts.weight_bytes += encoders.weight_bytes
    for block in plan.blocks_of(index):
        layers = plan.blocks[block]
        progress(f"layers {layers.start}-{layers.stop - 1}")
        denoiser = parts.denoisers[block] = fast_denoiser(config, device, picture, layers)
        parts.weight_bytes += parameter_bytes(denoiser.network)
    if index == plan.decode and rank == 0 and config.sink.needs_frames:
        progress("decoder")
        parts.decoder = fast_decoder(config, device)
        parts.weight_bytes += parameter_bytes(parts.decoder)
    return parts
