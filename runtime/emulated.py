"""A worker's holdings on an emulated device: sources, pacing and draws are real, encoders and networks are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conf.schema import Config, ModelConfig, SourceConfig, StreamConfig
from parallel.plan import Plan
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.orders import Open
from runtime.outputs import Outputs, open_outputs
from runtime.parts import Parts
from runtime.pool import BankPool
from stages.build import SPATIAL_STRIDE
from stages.codec.base import CodecState
from stages.denoise.sampler import Sampler
from stages.denoise.schedule import schedule_of
from stages.emulated import (
    EmulatedDecoder,
    EmulatedDenoiser,
    EmulatedDevice,
    EmulatedEncoder,
    EmulatedFeatures,
    EmulatedSampler,
    EmulatedTextEncoder,
    latent_shape,
)
from stages.inputs import Given, Input, made_of


class EmulatedEncoders(Encoders):
    """Encoders of an emulated device: rows, tokens and states of zeros.

    Args:
        model: the run's.
        device: of the encode worker.
    """

    def __init__(self, model: ModelConfig, device: EmulatedDevice):
        super().__init__(model, torch.device("cpu"))
        self.emulated = device
        prompt = made_of(self.inputs, "prompt")
        self._loaded = {"prompt": EmulatedTextEncoder(prompt) if prompt else None, "codec": None}
        for one in self.inputs:
            self._loaded |= {
                f"input.{one.name}": EmulatedEncoder(one) if one.encoder else None,
                f"ear.{one.name}": None,
                f"viewer.{one.name}": None,
            }

    def listen(self, one: Input, whole_file: bool = False) -> EmulatedFeatures:
        """Features of zeros."""
        return EmulatedFeatures(one, self.model.fps)

    def start(self) -> CodecState:
        """Nothing is remembered."""
        return CodecState()

    def video(self, pictures: Tensor, state: CodecState) -> Tensor:
        """Latents of zeros, as few as need be: what enters is noise of the emulated size."""
        return torch.zeros(1, 1, 1, 1, 1)

    def still(self, image: Tensor, latents: int = 1, keep: bool = True) -> Tensor:
        """Latents of zeros for an image [3, H, W]."""
        channels = next(one.shape[0] for one in self.inputs if one.pictured)
        return torch.zeros(1, channels, latents, *(side // SPATIAL_STRIDE for side in image.shape[1:]))

    def scene(self, image: Tensor, keep: bool = True) -> Tensor:
        """A latent of zeros."""
        return self.still(image)


class EmulatedConditioning(Conditioning):
    """Conditioning whose encoders hold their device and return zeros.

    Args:
        model: the run's.
        stream, source: the stream.
        encoders: emulated ones.
    """

    def __init__(
        self, model: ModelConfig, stream: StreamConfig, source: SourceConfig, encoders: EmulatedEncoders, *rest, **more
    ):
        self._emulated = encoders.emulated
        super().__init__(model, stream, source, encoders, *rest, **more)

    def states(self, chunk: int) -> Given | None:
        """As ever; asked first once a chunk's live input has come, so here the encoders take their time."""
        self._emulated.hold(self._emulated.config.encode_s, chunk, f"encode {self.stream.id}")
        return super().states(chunk)

    def entering(self, chunk: int) -> Tensor:
        """Noise alone."""
        return self.noises(chunk)

    def samples(self, chunk: int) -> None:
        """Returns None: an emulated run has no pictures, so no sound track."""
        super().samples(chunk)  # a live source is read all the same

    def _latent_shape(self, chunk: int) -> tuple[int, ...]:
        return latent_shape(self.model, self._emulated.config, len(self.model.frames(chunk)), *self.picture.latent)


class EmulatedPost:
    """A post stage that holds its device, and leaves the frames that there are none of as they are.

    Args:
        device: what is held.
    """

    def __init__(self, device: EmulatedDevice):
        self.device, self._chunks = device, 0

    def __call__(self, frames: Tensor) -> Tensor:
        """The frames as they came."""
        self._chunks += 1
        self.device.hold(self.device.config.post_s, self._chunks, "post")
        return frames


class EmulatedOutputs(Outputs):
    """Sinks that take their time with every chunk, beside the device."""

    seconds = 0.0

    def latents(self, latents: Tensor) -> None:
        """Hash and keep a chunk's latents."""
        time.sleep(self.seconds)
        super().latents(latents)


def emulated_outputs(config: Config, order: Open) -> Outputs:
    """Sinks of a stream; raises as `Outputs` does."""
    made = open_outputs(config, order, EmulatedOutputs)
    made.seconds = config.device.emulated.output_s
    return made


def fill(parts: Parts, plan: Plan, index: int, config: Config, encoders: Callable[[Encoders], Any]) -> None:
    """Give worker `index` emulated stages; nothing is loaded, so its weights are 0 bytes.

    Args:
        encoders: makes what opens streams of encoders, on the encode worker.
    """
    device, model = EmulatedDevice(config.device.emulated, index), config.model
    picture = Picture.of(model, config.stream)
    parts.device, real = torch.device("cpu"), Sampler.of(model, schedule_of(model).steps)
    parts.sampler = EmulatedSampler(real.rule, real.table)
    if index == plan.encode:
        parts.conditioning = encoders(EmulatedEncoders(model, device))
    for block in plan.blocks_of(index):
        layers = plan.blocks[block]
        parts.denoisers[block] = EmulatedDenoiser(device, model, layers, picture.rows, picture.columns)
        parts.pools[block] = BankPool(parts.denoisers[block], plan.levels_of(index, block), 0)
    parts.outputs = emulated_outputs
    if any(stage == ("post", index) for stage in plan.stages):
        parts.post = EmulatedPost(device)
    if index == plan.decode and config.sink.needs_frames:
        parts.decoder = EmulatedDecoder(device, model, picture.height, picture.width)
