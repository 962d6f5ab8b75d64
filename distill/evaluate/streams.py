"""Streams to evaluate: a model's own denoiser, banks, sampler, encoders and decoder, driven by a case from outside.

The loop itself is handed in (`Loop`): the sequential oracle of the runtime, against which every plan is held bit for
bit, so what is measured here is what any plan streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.build import (
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    build_decoder,
    build_encoder,
    build_input_encoder,
    build_network,
    build_text_encoder,
    torch_dtype,
)
from stages.denoise.denoiser import Denoiser
from stages.denoise.draws import Draws
from stages.inputs import REFERENCE, Given, Input, inputs_of, made_of
from stages.post import to_pictures

Loop = Callable[[Denoiser, Any, Any], Iterator[Tensor]]
"""(denoiser, conditioning, trace) to the final latents of one chunk after another: `runtime.oracle.generate`."""


class Case(Protocol):
    """What drives one stream."""

    seed: int
    prompt: str
    chunks: int

    def reference(self) -> np.ndarray | None:
        """The reference picture uint8 [H, W, 3], for models that have one."""
        ...

    def features(self, frames: range) -> np.ndarray | None:
        """Sound features [n, features] of these video frames, for models that hear."""
        ...

    def actions(self, frames: range, seen: np.ndarray | None) -> np.ndarray | None:
        """Actions [n] of these video frames, for models that are steered, after what the last chunk showed."""
        ...


Timer = Callable[[str, int], AbstractContextManager]
"""(name of a pass, chunk) to what is open while it runs."""


def untimed(name: str, chunk: int) -> nullcontext:
    """A timer that times nothing."""
    return nullcontext()


@dataclass
class Driven:
    """A case as the loop asks for it, chunk by chunk. `seen` is the last chunk's frames once they are decoded."""

    engine: Engine
    case: Case
    seen: np.ndarray | None = None

    def __post_init__(self):
        self._draws = Draws(self.case.seed, "evaluate")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Of the model."""
        return self.engine.inputs

    def sink(self) -> Given:
        """The reference, a latent [1, C, 1, h, w], where there is one."""
        picture = self.case.reference()
        return {} if picture is None else {REFERENCE: self.engine.encode(picture)}

    def lasting(self) -> Given:
        """Nothing beside the reference."""
        return {}

    def states(self, chunk: int) -> Given | None:
        """One prompt for the whole stream."""
        return {"text": self.engine.text_encoder(self.case.prompt)} if chunk == 0 else None

    @torch.inference_mode()
    def chunk(self, chunk: int) -> Given | None:
        """Sound and actions of a chunk; None after the last."""
        if chunk >= self.case.chunks:
            return None
        engine, count = self.engine, self.engine.frames_per_chunk
        frames = range(chunk * count, (chunk + 1) * count)
        heard = self.case.features(frames)
        audio = None if heard is None else engine.audio_encoder(torch.from_numpy(heard)[None])
        pressed = self.case.actions(frames, self.seen)
        given = {} if audio is None else {"audio": audio}
        return given if pressed is None else given | {"actions": made_of(self.inputs, "actions").rows(pressed)}

    def noise(self, chunk: int, step: int) -> Tensor:
        """[1, C, c, h, w]."""
        return self._draws.noise(chunk, step, self.engine.latent)

    def entering(self, chunk: int) -> Tensor:
        """The noise that a chunk begins with."""
        return self.noise(chunk, 0)

    def timestep(self, chunk: int) -> float:
        """No chunk has one of its own."""
        return 0.0

    def distance(self, chunk: int, step: int) -> int:
        """As `sink_shift` draws it."""
        shift = self.engine.model.sink_shift
        return self._draws.distance(chunk, step, shift.distance_min, shift.distance_max)


class Engine:
    """A model's parts, loaded once for many streams.

    Args:
        model: the model; `checkpoint` names its weights.
        loop: the streaming loop.
        kind: its passes.
    """

    def __init__(self, model: ModelConfig, loop: Loop, kind: type[Denoiser] = Denoiser):
        device = torch.device("cpu")
        self.model, self.loop = model, loop
        _, high, wide = model.network.patch
        h, w = model.height // SPATIAL_STRIDE, model.width // SPATIAL_STRIDE
        self.latent = (1, model.network.in_channels, model.chunk_frames, h, w)
        self.frames_per_chunk = model.chunk_frames * TEMPORAL_STRIDE
        self.denoiser = kind(model, build_network(model, device), h // high, w // wide)
        self.inputs = inputs_of(model)
        heard = made_of(self.inputs, "audio")
        self.text_encoder = build_text_encoder(model, made_of(self.inputs, "prompt"))
        self.audio_encoder = heard and build_input_encoder(model, heard)
        self.encoder = build_encoder(model, device)
        self.decoder = build_decoder(model, device)
        self._dtype = torch_dtype(model.dtype)

    @torch.inference_mode()
    def through(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [n, H, W, 3] (whole latent frames of them) encoded and decoded: the best any stream can be."""
        whole = len(frames) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
        video = torch.from_numpy(frames[:whole]).permute(3, 0, 1, 2).float().div(127.5).sub(1).to(self._dtype)[None]
        latents = self.encoder(video, self.encoder.start())
        return np.asarray(to_pictures(self.decoder(latents, self.decoder.start())))

    @torch.inference_mode()
    def encode(self, picture: np.ndarray) -> Tensor:
        """A picture, held still for the time of a latent frame, to its latent."""
        still = torch.from_numpy(picture).permute(2, 0, 1).float().div(127.5).sub(1).to(self._dtype)
        return self.encoder(still[None, :, None].repeat(1, 1, TEMPORAL_STRIDE, 1, 1), self.encoder.start())

    def stream(self, case: Case, timer: Timer = untimed) -> Iterator[np.ndarray]:
        """Frames uint8 [n, H, W, 3] of one chunk after another; `timer` times every pass."""
        driven, state = Driven(self, case), self.decoder.start()
        for latents in self.loop(self.denoiser, driven, timer):
            with torch.inference_mode():
                driven.seen = np.asarray(to_pictures(self.decoder(latents, state)))
            yield driven.seen


def chunks_of(model: ModelConfig, seconds: float) -> int:
    """Chunks that hold so many seconds of video."""
    return int(np.ceil(round(seconds * model.fps / (model.chunk_frames * TEMPORAL_STRIDE), 6)))
