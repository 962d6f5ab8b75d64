"""What a worker encodes with, shared by its streams, and the size of a stream's pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError
from conf.schema import ModelConfig, StreamConfig
from stages.build import (
    SPATIAL_STRIDE,
    build_audio_encoder,
    build_encoder,
    build_text_encoder,
    build_wav2vec,
    video_frames,
)
from stages.codec.base import parameter_bytes
from stages.denoise.frame_pack import UNIT as PACK_UNIT
from stages.encode.audio_features import LogMel
from stages.encode.wav2vec import Features, Listening, WholeFile


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
            unit = SPATIAL_STRIDE * patch * (PACK_UNIT if model.network.frame_pack else 1)
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
    before = video_frames(model.codec, chunk * model.chunk_frames, first=True) if chunk else 0
    return before, video_frames(model.codec, model.chunk_frames, first=chunk == 0)


class Encoders:
    """The encoders that all streams of a worker share, each loaded when it is first asked for, and kept.

    Streams are opened by threads of their own, so loading is guarded: no encoder is loaded twice.

    Args:
        model: which.
        device: where encoders run that are worth it.
    """

    def __init__(self, model: ModelConfig, device: torch.device):
        self.model, self.device = model, device
        self._lock, self._loaded = threading.RLock(), {}

    def _once(self, name: str, build: Callable[[ModelConfig, torch.device], Any]) -> Any:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = build(self.model, self.device)
            return self._loaded[name]

    @property
    def text(self):
        """Prompt -> rows [1, L, text_dim]; None for a model without text."""
        return self._once("text", build_text_encoder)

    @property
    def audio(self):
        """Features -> tokens; None for a model without sound."""
        return self._once("audio", build_audio_encoder)

    @property
    def wav2vec(self):
        """Samples -> hidden states; None for a model that does without."""
        return self._once("wav2vec", build_wav2vec)

    @property
    def codec(self):
        """Pixels -> latents, for references."""
        return self._once("codec", build_encoder)

    def listen(self, whole_file: bool = False) -> LogMel | Features:
        """New features of a sound, which may be heard all at once if it is a file."""
        audio, fps = self.model.network.audio, self.model.fps
        if audio.wav2vec is None:
            return LogMel(fps, audio.rows_per_frame, audio.bands, lookahead_s=audio.lookahead_s)
        if whole_file and audio.wav2vec.whole_file:
            return WholeFile(lambda: self.wav2vec, audio.wav2vec, fps)
        return Listening(lambda: self.wav2vec, audio.wav2vec, fps, audio.lookahead_s)

    def load(self) -> None:
        """Load all that streams to come may need."""
        _ = self.text, self.audio, self.wav2vec, self.model.reference and self.codec

    @property
    def weight_bytes(self) -> int:
        """Of those loaded so far."""
        modules = [getattr(encoder, "model", encoder) for encoder in self._loaded.values()]
        return sum(parameter_bytes(module) for module in modules if isinstance(module, nn.Module))

    @torch.inference_mode()
    def still(self, image: Tensor, latents: int = 1) -> Tensor:
        """Latents [1, C, n, h, w] of an image [3, H, W] held still."""
        encoder = self.codec
        frames = video_frames(replace(self.model.codec, prime=0), latents, first=True)
        dtype = next(encoder.parameters()).dtype
        video = image.to(self.device, dtype)[None, :, None].repeat(1, 1, frames, 1, 1)
        return encoder(video, encoder.start())
