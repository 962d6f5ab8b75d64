"""Decode and post: final latents to pictures, which stay on the device until they are put out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import devices
from conf.schema import ModelConfig
from runtime.saving import Mark, Saver
from runtime.snapshot import DECODER, Snapshot
from stages.codec.base import CodecState, Decoder
from stages.inputs import Given, inputs_of


@dataclass
class Decoding:
    """One stream's decoder on its way.

    Attributes:
        decoder: shared by all streams of the worker.
        state: what it remembers of this stream.
        primer, primes: the input whose frames it sees before the first chunk, and how many; empty: none.
    """

    decoder: Decoder
    state: CodecState
    primer: str = ""
    primes: int = 0

    @classmethod
    def of(cls, decoder: Decoder, model: ModelConfig, state: Snapshot | None = None) -> Decoding:
        """A new stream's, or one that goes on from a saved state."""
        primer = next((one.name for one in inputs_of(model) if one.primes), "")
        made = cls(decoder, decoder.start(), primer, model.codec.prime)
        if state is not None:
            tensors, counters = state.decoder
            device = next(decoder.parameters()).device
            found = (tensors.get(f"cache.{i:03d}") for i in range(counters["layers"]))
            made.state.cache = [None if tensor is None else tensor.to(device) for tensor in found]
            made.state.steps = counters["steps"]
        return made

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        """Frames [1, 3, n, H, W] in [-1, 1] of a chunk's latents [1, C, c, h, w]."""
        return self.decoder(latents, self.state)

    @torch.inference_mode()
    def prime(self, lasting: Given) -> None:
        """Before the first chunk: see what was before the stream, an input of the attention sink, if that is wanted."""
        if self.primes and lasting:
            weight = next(self.decoder.parameters())
            seen = devices.of(weight.device).upload(lasting[self.primer][:, :, : self.primes])
            self.decoder(seen.to(weight.dtype), self.state)

    def cut(self, saver: Saver, stream: int, chunk: int, mark: Mark) -> None:
        """Have what it remembers now written, as a part of the cut before `chunk`: nothing that comes changes it."""
        cache = [None if tensor is None else tensor.clone() for tensor in self.state.cache]
        tensors = {f"cache.{i:03d}": tensor for i, tensor in enumerate(cache) if tensor is not None}
        counters: dict[str, Any] = {"steps": self.state.steps, "layers": len(cache)}
        saver.take(stream, chunk, DECODER, tensors, counters, mark)
