"""One step of a model, alone on a device with random weights, once the window has filled.

A variant is `plain`, or words joined by `+`: `compile`, `graphs`, and `fp8` (one scale) or `fp8_row` (one for each
row).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import devices
from benchmarks import made_up
from benchmarks.counting import Count, count
from conf.schema import ModelConfig
from runtime.rule_costs import period
from stages.build import network_class
from stages.codec.base import parameter_bytes
from stages.compiled import compile_network
from stages.denoise import graphs
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.inputs import Axis, inputs_of, on

PIXELS = 8
"""Of a latent, in each direction."""
WORDS = {"plain": None, "compile": None, "graphs": None, "fp8": "per_tensor", "fp8_row": "per_row"}


class Counted(NamedTuple):
    """What a stage's work needs: of a step, and of what is made once for a chunk; None: nothing is."""

    step: Count
    once: Count | None


def placed(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module with random weights of sensible size, made where they are used."""
    with torch.device("meta"):
        module = make().to(dtype)
    module = module.to_empty(device=device).eval().requires_grad_(False)
    if device.type == "meta":
        return module
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim >= 2 and "modulation" not in name.rsplit(".", 1)[-1]:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif "norm" in name or name.endswith("std"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=0.1)
    return module


class Stage:
    """One step of a model on a device.

    Args:
        model: its configuration; `height` and `width` are the stream's.
        variant: see above.
    """

    def __init__(self, model: ModelConfig, device: torch.device, variant: str = "plain"):
        words = variant.split("+")
        kind = next((WORDS[w] for w in words if WORDS[w]), None)
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        rows, columns = (
            n // PIXELS // p for n, p in zip((model.height, model.width), model.network.patch[1:], strict=True)
        )
        kind_of_network = network_class(model)
        network = placed(lambda: kind_of_network(model.network, attention=model.attention), device, self.dtype)
        self.denoiser = Denoiser(model, network, rows, columns)
        if kind:
            network.quantise(kind)
        self.weight_bytes = parameter_bytes(network)
        schedule = self.denoiser.schedule
        self.first, self.frames = (
            schedule.first_step(1),
            model.chunk_frames * len(schedule.together(schedule.first_step(1))),
        )
        self.full = self.denoiser.history.distinct.stop
        self.round = len(period(model, self.denoiser.layout))
        """Chunks until slots are written again as they were."""
        self.chunk, self.stream = 0, self._open()
        self.makes, self._make = bool(model.network.once_values(1, 1)), network.once
        if self.makes:
            # From here on it lies where a chunk of each length has put it.
            for _ in range(2):
                self.step()
            network.once = lambda given, take: ()
        if "compile" in words:
            compile_network(network)
        if "graphs" in words:
            graphs.attach(self.denoiser, "always")

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def _open(self) -> StreamBanks:
        model, n = self.model, self.model.network
        stream = self.denoiser.open([0])
        self.bank_bytes = self.denoiser.stream_bytes
        inputs, size = inputs_of(model), (model.height // PIXELS, model.width // PIXELS)
        self.denoiser.set_states(stream, {one.name: self.random(*one.full()) for one in on(inputs, Axis.EPOCH)})
        if sink := on(inputs, Axis.SINK):
            self.denoiser.prefill(stream, {one.name: self.random(*one.full(size, n.before)) for one in sink})
        self.latents = self.random(1, n.in_channels, self.frames, *size)
        self.given = made_up.of_chunk(model, size, 1, self.random)
        return stream

    @property
    def settled(self) -> int:
        """Steps until the window is full, every place was seen twice (a graph is recorded the second time), and one was
        run once more."""
        return self.full + 2 * self.round + 1

    def step(self) -> None:
        """The next chunk's first step; another attention-sink distance for each, as a stream has."""
        distance = self.model.sink_shift.distance_min + self.chunk % 7
        self.denoiser.step(self.stream, self.first, self.chunk, self.latents, self.given, distance)
        self.chunk += 1

    @torch.inference_mode()
    def once(self) -> None:
        """What all passes of a chunk have in common, made anew where it lies."""
        frames, upload = self.model.frames(1), devices.of(self.device).upload
        here = {name: upload(tensor) for name, tensor in self.given.items()}
        take = partial(self.denoiser.share.take, frames=len(frames))
        kept = next(iter(self.stream.once.values()))
        kept.clear()
        kept.of(frames, lambda: self._make(here, take))

    def count(self) -> Counted:
        """Of one step, the window full, in the mean of a round; of a stage on the meta device."""
        self.chunk = self.full + self.round
        found = count(lambda: [self.step() for _ in range(self.round)])
        step = Count(found.linear / self.round, found.attention / self.round, found.bytes // self.round)
        return Counted(step, count(self.once) if self.makes else None)
