"""A worker's holdings on an emulated device: sources, pacing and draws are real, encoders and networks are not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from conf.schema import Config, ModelConfig
from parallel.plan import Plan
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.orders import Open
from stages.build import SPATIAL_STRIDE
from stages.denoise.sampler import Sampler
from stages.emulated import (
    EmulatedAudioEncoder,
    EmulatedDecoder,
    EmulatedDenoiser,
    EmulatedDevice,
    EmulatedSampler,
    EmulatedTextEncoder,
    EmulatedWav2Vec,
    latent_shape,
)

if TYPE_CHECKING:
    from runtime.parts import Parts


class EmulatedEncoders(Encoders):
    """Encoders of an emulated device.

    Args:
        model: the run's.
        device: of the encode worker.
    """

    def __init__(self, model: ModelConfig, device: EmulatedDevice):
        super().__init__(model, torch.device("cpu"))
        self.emulated = device

    @cached_property
    def text(self) -> EmulatedTextEncoder:
        """Rows of zeros."""
        return EmulatedTextEncoder(self.model)

    @cached_property
    def audio(self) -> EmulatedAudioEncoder | None:
        """Tokens of zeros."""
        return EmulatedAudioEncoder(self.model) if self.model.network.audio else None

    @cached_property
    def wav2vec(self) -> EmulatedWav2Vec | None:
        """States of zeros."""
        audio = self.model.network.audio
        return EmulatedWav2Vec(audio.wav2vec) if audio and audio.wav2vec else None

    def still(self, image: Tensor, latents: int = 1) -> Tensor:
        """Latents of zeros for an image [3, H, W]."""
        rows, columns = image.shape[1] // SPATIAL_STRIDE, image.shape[2] // SPATIAL_STRIDE
        return torch.zeros(1, self.model.network.in_channels, latents, rows, columns)


class EmulatedConditioning(Conditioning):
    """Conditioning whose encoders hold their device and return zeros.

    Args:
        model: the run's.
        order: the stream.
        encoders: emulated ones.
        stdin: as for `Conditioning`.
    """

    def __init__(self, model: ModelConfig, order: Open, encoders: EmulatedEncoders, stdin: BinaryIO | None = None):
        self._emulated = encoders.emulated
        super().__init__(model, order.config, order.source, encoders, stdin)

    def text(self, chunk: int) -> Tensor | None:
        """As ever; asked first once a chunk's live input has come, so here the encoders take their time."""
        self._emulated.hold(self._emulated.config.encode_s, chunk, f"encode {self.stream.id}")
        return super().text(chunk)

    def samples(self, chunk: int) -> None:
        """No sound is heard with pictures that there are none of."""
        super().samples(chunk)  # a live source is read all the same

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        return latent_shape(self.model, self._emulated.config, self.model.chunk_frames, *self.picture.latent)


def fill(
    parts: Parts, plan: Plan, index: int, config: Config, orders: Iterable[Open], stdin: BinaryIO | None = None
) -> Parts:
    """Give worker `index` emulated stages; nothing is loaded, so its weights are 0 bytes."""
    device, model, picture = (
        EmulatedDevice(config.device.emulated, index),
        config.model,
        Picture.of(config.model, config.stream),
    )
    parts.device, real = torch.device("cpu"), Sampler.of(model)
    parts.sampler = EmulatedSampler(real.rule, real.sigmas)
    if index == plan.encode:
        encoders = EmulatedEncoders(model, device)
        parts.conditioning = lambda order: EmulatedConditioning(model, order, encoders, stdin)
        parts.prepare(orders)
    for block in plan.blocks_of(index):
        layers = plan.blocks[block]
        parts.denoisers[block] = EmulatedDenoiser(device, model, layers, picture.rows, picture.columns)
    if index == plan.decode and config.sink.needs_frames:
        parts.decoder = EmulatedDecoder(device, model, picture.height, picture.width)
    return parts
