"""What a recache runs again: the latest finished chunks of a stream, as many as a window holds."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from stages.denoise.denoiser import ChunkConditioning

LATENTS = "x"
FRAMES_AT = {LATENTS: 2, "pose": 2, "audio": 1, "actions": 1}
"""The dimension that counts latent frames."""


class Finished:
    """Latents of finished chunks, and what they were made with.

    Args:
        most: chunks kept; 0: none, for whoever has no use for them.

    Attributes:
        chunks: tensors by name (`x`, and those of `ChunkConditioning`), by chunk.
    """

    def __init__(self, most: int):
        self.most = most
        self.chunks: dict[int, dict[str, Tensor]] = {}

    def add(self, chunk: int, x: Tensor | None, given: ChunkConditioning) -> None:
        """Keep a chunk, and let go of the oldest; `x` None: whoever runs this chunk again is given hidden states."""
        self.chunks[chunk] = given.tensors() | ({} if x is None else {LATENTS: x})
        self.chunks = {number: kept for number, kept in self.chunks.items() if number > chunk - self.most}

    def joined(self, chunks: range) -> tuple[Tensor | None, ChunkConditioning] | None:
        """Latents [1, C, f, h, w] and conditioning of consecutive chunks in one; None where one of them is missing."""
        if any(chunk not in self.chunks for chunk in chunks):
            return None
        kept = [self.chunks[chunk] for chunk in chunks]
        joined = {name: torch.cat([one[name] for one in kept], FRAMES_AT[name]) for name in kept[0]}
        return joined.get(LATENTS), ChunkConditioning.of(joined)

    def content(self) -> dict[str, Tensor]:
        """All that is kept, by `CHUNK.NAME`."""
        return {f"{chunk:06d}.{name}": t for chunk, kept in self.chunks.items() for name, t in kept.items()}

    def restore(self, content: dict[str, Tensor], latents: bool) -> None:
        """Take what `content` gave, with latents or without."""
        names = {f.name for f in fields(ChunkConditioning)} | ({LATENTS} if latents else set())
        self.chunks = {}
        for key, tensor in content.items():
            chunk, _, name = key.partition(".")
            if name in names:
                self.chunks.setdefault(int(chunk), {})[name] = tensor
