"""What a worker encodes with, shared by its streams, and the size of a stream's pictures."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import devices
from conf.codecs import declared
from conf.errors import UserError
from conf.schema import ModelConfig, StreamConfig
from stages.build import (
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    build_encoder,
    build_image_encoder,
    build_input_encoder,
    build_text_encoder,
    video_frames,
)
from stages.codec.base import CodecState, parameter_bytes
from stages.inputs import LATENT_FRAMES, Axis, Input, encodes, inputs_of, made_of, on


@dataclass(frozen=True)
class Picture:
    """The size of a stream's pictures, in pixels, latents and tokens."""

    height: int
    width: int
    rows: int
    columns: int

    @staticmethod
    def of(model: ModelConfig, stream: StreamConfig) -> Picture:
        """The stream's size, or the model's own; refused where it is no whole number of tokens."""
        size = stream.height or model.height, stream.width or model.width
        tokens = []
        for name, pixels, patch in zip(("height", "width"), size, model.network.patch[1:], strict=True):
            unit = SPATIAL_STRIDE * patch * model.network.unit
            if pixels % unit:
                lower = max(unit, pixels // unit * unit)
                raise UserError(
                    f"stream.{name}={pixels}", f"must be a multiple of {unit}", f"use {lower} or {lower + unit}"
                )
            tokens.append(pixels // (SPATIAL_STRIDE * patch))
        return Picture(*size, *tokens)

    @property
    def latent(self) -> tuple[int, int]:
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE


def frames_of(model: ModelConfig, chunk: int) -> tuple[int, int]:
    """(first video frame, number of video frames) of a chunk."""
    latents = model.frames(chunk)
    before = video_frames(model.codec, latents.start, first=True) if chunk else 0
    return before, video_frames(model.codec, len(latents), first=chunk == 0)


def latents_of(model: ModelConfig, chunk: int) -> int:
    """Latent frames of a chunk."""
    return len(model.frames(chunk))


def first_pictures(model: ModelConfig) -> int:
    """Pictures that a video's first latent is encoded from: one by a causal encoder, whatever the decoder gives for
    it."""
    kind = model.codec.kind
    return declared(declared(kind).encoder or kind).first_frames


def pictures_of(model: ModelConfig, chunk: int) -> int:
    """Pictures that a chunk's latents are encoded from, in video to video."""
    first = first_pictures(model) if chunk == 0 else TEMPORAL_STRIDE
    return first + TEMPORAL_STRIDE * (latents_of(model, chunk) - 1)


def still_latents(model: ModelConfig) -> int:
    """Latents that a picture is encoded to for the attention sink, where it is held still; 0: none."""
    inputs = on(inputs_of(model), Axis.SINK)
    return max((one.shape[one.at - 1] or model.network.before for one in inputs), default=0)


STILLS = 8
"""Pictures whose latents are kept."""
RESTS = 64
"""Latents after which an encoder that has not come to rest is held where it is. The published models' comes to
rest with 30, as far as its convolutions look back."""


class Encoders:
    """The encoders that all streams of a worker share, each loaded when it is first asked for, and kept.

    Streams are opened by threads of their own, so loading is guarded: no encoder is loaded twice.

    Args:
        model: which.
        device: where encoders run that are worth it.
    """

    def __init__(self, model: ModelConfig, device: torch.device):
        self.model, self.device, self.inputs = model, device, inputs_of(model)
        self._lock, self._loaded = threading.RLock(), {}
        self._kept: dict[str, OrderedDict[tuple, Tensor]] = {}
        """What was made lately of pictures, by what it is, and by their content: most streams begin with the same."""
        self._encoding = threading.Lock()

    def _once(self, name: str, build: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = build()
            return self._loaded[name]

    @property
    def text(self) -> Any:
        """Prompt -> rows [1, L, width]; None for a model that reads none, or whose rows have to be given."""
        prompt = made_of(self.inputs, "prompt")
        return self._once("prompt", lambda: prompt and build_text_encoder(self.model, prompt, self.device))

    def viewer(self, one: Input) -> Any:
        """Picture -> an epoch's input that is made of one; None: it has to be given."""
        return self._once(f"viewer.{one.name}", lambda: build_image_encoder(self.model, one, self.device))

    def of(self, one: Input) -> Any:
        """What makes an input of a chunk from what its source gives; None: it is that already."""
        return self._once(f"input.{one.name}", lambda: build_input_encoder(self.model, one, self.device))

    def ear(self, one: Input) -> Any:
        """The network that hears an input's sound; None: there is none."""
        build = one.ear.build if one.ear else None
        return self._once(f"ear.{one.name}", lambda: build and build(self.model, self.device))

    @property
    def codec(self) -> Any:
        """Pixels -> latents, for pictures and videos."""
        return self._once("codec", lambda: build_encoder(self.model, self.device))

    def listen(self, one: Input, whole_file: bool = False) -> Any:
        """New features of a sound for an input, which may be heard all at once if it is a file."""
        return one.ear.features(lambda: self.ear(one), whole_file)

    def load(self) -> None:
        """Load all that streams to come may need."""
        _ = self.text, encodes(self.model, self.inputs) and self.codec
        for one in self.inputs:
            _ = self.of(one), self.ear(one), one.described and self.viewer(one)

    @property
    def weight_bytes(self) -> int:
        """Of those loaded so far."""
        modules = [getattr(encoder, "model", encoder) for encoder in self._loaded.values()]
        return sum(parameter_bytes(module) for module in modules if isinstance(module, nn.Module))

    def start(self) -> CodecState:
        """What the codec's encoder remembers of a video that begins."""
        return self.codec.start()

    @torch.inference_mode()
    def state_bytes(self, picture: Picture) -> int:
        """What the codec remembers of one stream's video, in bytes; 0: there is none, or its latents are given. All of
        it is pictures, so that one place of a latent tells."""
        if self.model.noise_scale is None or "codec" not in self._loaded:
            return 0
        state = self.start()
        for chunk in range(2):
            self.video(torch.zeros(3, pictures_of(self.model, chunk), SPATIAL_STRIDE, SPATIAL_STRIDE), state)
        return state.nbytes * math.prod(picture.latent)

    @torch.inference_mode()
    def video(self, pictures: Tensor, state: CodecState) -> Tensor:
        """Latents [1, C, f, h, w], float32 on the host, of the next pictures [3, n, H, W] of a stream in [-1, 1]."""
        encoder = self.codec
        here = devices.of(self.device).upload(pictures[None].to(next(encoder.parameters()).dtype))
        return encoder(here, state).float().cpu()

    def still(self, image: Tensor, latents: int = 1, keep: bool = True) -> Tensor:
        """Latents [1, C, n, h, w] of an image [3, H, W] held still. Streams share them: nobody writes there.

        A stream that begins takes the device from those that run, so what was encoded lately is not encoded again.

        Args:
            keep: whether it may be kept; what a visitor sent is not.
        """
        return self._lately("still", image, lambda: self._still(image, latents), keep, latents)

    def scene(self, image: Tensor, keep: bool = True) -> Tensor:
        """Latents [1, C, n, h, w], float32 on the host, of a video that begins with an image [3, H, W] and is mid-grey
        from then on; the last of them is that of all that follow. Shared and kept as those of `still`.
        """
        return self._lately("scene", image, lambda: self._scene(image), keep)

    def rows(self, one: Input, image: Tensor, keep: bool = True) -> Tensor:
        """An epoch's input [1, n, width], on the host, of an image [3, H, W]. Shared and kept as those of `still`."""
        return self._lately(f"rows.{one.name}", image, lambda: self.viewer(one)(image), keep)

    def _lately(self, what: str, image: Tensor, make: Callable[[], Tensor], keep: bool, *more: int) -> Tensor:
        """What `make` makes of an image, or made of it lately."""
        if not keep:
            with self._encoding:
                return make()
        key = hashlib.sha256(repr(image.shape).encode() + image.numpy().tobytes()).digest(), *more
        with self._encoding:
            kept = self._kept.setdefault(what, OrderedDict())
            if key not in kept:
                made = make()
                # Whoever finds it may work on another queue.
                if (done := devices.of(self.device).mark()) is not None:
                    done.wait()
                kept[key] = made
            kept.move_to_end(key)
            while len(kept) > STILLS:
                kept.popitem(last=False)
            return kept[key]

    @torch.inference_mode()
    def _still(self, image: Tensor, latents: int) -> Tensor:
        encoder = self.codec
        frames = video_frames(replace(self.model.codec, prime=0), latents, first=True)
        dtype = next(encoder.parameters()).dtype
        # Nothing but the video itself is there while it is encoded.
        video = devices.of(self.device).upload(image).to(dtype)[None, :, None].repeat(1, 1, frames, 1, 1)
        return encoder(video, encoder.start())

    @torch.inference_mode()
    def _scene(self, image: Tensor) -> Tensor:
        """An encoder is causal: a latent follows from its own pictures and what is remembered. Once grey leaves that as
        it was, bit for bit, all that follows is the same. Latents are made one by one, so that each is the same work.
        """
        state = self.start()
        found = [self.video(image[:, None].repeat(1, first_pictures(self.model), 1, 1), state)]
        grey = torch.zeros(3, TEMPORAL_STRIDE, *image.shape[1:])
        while len(found) < RESTS:
            before = list(state.cache)
            found.append(self.video(grey, state))
            if all(was is not None and torch.equal(was, now) for was, now in zip(before, state.cache, strict=True)):
                break
        return torch.cat(found, LATENT_FRAMES)
