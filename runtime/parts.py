"""What one worker of a plan holds: the parts of its cells and stages, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import devices
from conf.schema import Config
from parallel.plan import Plan
from runtime.block import Block
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.kept import Kept
from runtime.orders import Open
from runtime.outputs import Outputs, open_outputs
from runtime.pool import BankPool
from runtime.prompts import Prompts
from stages.codec.base import Decoder
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import Sampler
from stages.sources.live import Stop


@dataclass
class Opening:
    """How a stream's sources are opened, and what may reach it before they are.

    Attributes:
        prompts: may be steered from any thread.
        stop: ends the stream at its next chunk, and releases its live sources.
        make: opens the sources; raises UserError where one cannot be used.
        device: of the encoders.
    """

    prompts: Prompts
    stop: Stop
    make: Callable[[], Conditioning]
    device: torch.device


@dataclass
class Parts:
    """A worker's holdings.

    Attributes:
        device, dtype: of its network.
        queue: of the device: where the worker's passes and stages go.
        sampler: the step list.
        denoisers: per block held.
        encoders: on the encode worker.
        conditioning: makes what drives a stream, on the encode worker: (order, its prompts, its stop event).
        prepared: what was made before the weights were loaded, by stream.
        pools: banks, per block held.
        decoder: on the decode worker, where pictures are wanted.
        post: on the post worker, where there is a post stage: frames [1, 3, n, H, W] to frames.
        outputs: opens a stream's sinks: (config, order) -> sinks.
        weight_bytes: of everything held.
        encoder_bytes, decoder_bytes: that the encoder keeps of one stream's video, and the decoder of one stream.
        kept: of streams, from one generation of the run to the next.
    """

    device: torch.device
    dtype: torch.dtype
    sampler: Sampler
    queue: devices.Queue
    denoisers: dict[int, Denoiser] = field(default_factory=dict)
    encoders: Encoders | None = None
    conditioning: Callable[[Open, Prompts, Stop], Conditioning] | None = None
    prepared: dict[int, Opening] = field(default_factory=dict)
    pools: dict[int, BankPool] = field(default_factory=dict)
    decoder: Decoder | None = None
    post: Callable[[Tensor], Tensor] | None = None
    outputs: Callable[[Config, Open], Outputs] = open_outputs
    weight_bytes: int = 0
    encoder_bytes: int = 0
    decoder_bytes: int = 0
    kept: Kept = field(default_factory=Kept)

    @property
    def bank_bytes(self) -> int:
        """Banks of one stream here; 0 before one was opened."""
        return sum(denoiser.stream_bytes for denoiser in self.denoisers.values())

    @property
    def stream_bytes(self) -> int:
        """What one more stream needs here: banks, states, what encoder and decoder keep."""
        states = sum(denoiser.states_bytes for denoiser in self.denoisers.values())
        return self.bank_bytes + states + self.encoder_bytes + self.decoder_bytes

    def blocks(self, plan: Plan, worker: int) -> dict[int, Block]:
        """The blocks of a worker that holds these parts."""
        return {
            b: Block(denoiser, plan.steps_of(worker, b), self.pools.get(b)) for b, denoiser in self.denoisers.items()
        }

    def prepare(self, orders: Iterable[Open]) -> None:
        """Open the sources of streams that are known already: it is cheap, and bad input shows before weights load.

        Raises:
            UserError: a source is missing, broken or does not fit the model.
        """
        for order in orders:
            opening = self.opening(order)
            conditioning = opening.make()
            opening.make = lambda made=conditioning: made
            self.prepared[order.stream] = opening

    def opening(self, order: Open) -> Opening:
        """How a stream's sources are opened; those that were prepared are open already.

        Raises:
            UserError: its prompts contradict each other.
        """
        if order.stream in self.prepared:
            return self.prepared.pop(order.stream)
        prompts, stop = Prompts(order.config), Stop()
        return Opening(prompts, stop, lambda: self.conditioning(order, prompts, stop), self.device)
