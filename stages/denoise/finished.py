"""What is kept of the latest finished chunks of a stream: what a recache runs again, as many as a window holds; and the
latents of chunks that are denoised together with those to come."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from conf.errors import UserError
from stages.inputs import CARRY, LATENT_FRAMES, LATENTS, Given, Input


class Finished:
    """Latents of finished chunks, and what they were made with.

    Args:
        most: chunks kept; 0: none, for whoever has no use for them.
        inputs: those that come with every chunk.

    Attributes:
        chunks: tensors by name (`x`, and those of inputs), by chunk.
    """

    def __init__(self, most: int, inputs: Iterable[Input]):
        self.most = most
        self._inputs = {one.name: one for one in inputs}
        self.chunks: dict[int, dict[str, Tensor]] = {}

    def add(self, chunk: int, x: Tensor | None, given: Given, carry: Tensor | None = None) -> None:
        """Keep a chunk, and let go of the oldest.

        Args:
            x: None: whoever runs this chunk again is given hidden states.
            carry: latents of the chunks behind it, which were denoised with it and are not finished.
        """
        own = {LATENTS: x, CARRY: carry}
        self.chunks[chunk] = given | {name: tensor for name, tensor in own.items() if tensor is not None}
        self.chunks = {number: kept for number, kept in self.chunks.items() if number > chunk - self.most}

    def entering(self, chunk: int, x: Tensor) -> Tensor:
        """Latents of the chunks that are denoised together with `chunk`: those carried on, then those that enter."""
        before = self.chunks.get(chunk - 1, {}).get(CARRY)
        return x if before is None else torch.cat([before, x], LATENT_FRAMES)

    def joined(self, chunks: range) -> tuple[Tensor | None, Given] | None:
        """Latents [1, C, f, h, w] and what was given of consecutive chunks in one; None where one is missing."""
        if any(chunk not in self.chunks for chunk in chunks):
            return None
        kept = [self.chunks[chunk] for chunk in chunks]
        given = {name: one.joined(self._all(name, kept)) for name, one in self._inputs.items() if self._any(name, kept)}
        return torch.cat([one[LATENTS] for one in kept], LATENT_FRAMES) if LATENTS in kept[0] else None, given

    @staticmethod
    def _any(name: str, kept: list[Given]) -> bool:
        return any(name in chunk for chunk in kept)

    @staticmethod
    def _all(name: str, kept: list[Given]) -> list[Tensor]:
        """An input of all chunks.

        Raises:
            UserError: it was given for some of them only.
        """
        if not all(name in chunk for chunk in kept):
            raise UserError(
                f"input {name}",
                "was given for some of the chunks that a new prompt runs again",
                "give it for all or none",
            )
        return [chunk[name] for chunk in kept]

    def content(self) -> dict[str, Tensor]:
        """All that is kept, by `CHUNK.NAME`."""
        return {f"{chunk:06d}.{name}": t for chunk, kept in self.chunks.items() for name, t in kept.items()}

    def restore(self, content: dict[str, Tensor], latents: bool) -> None:
        """Take what `content` gave, with latents or without."""
        names = {*self._inputs, *([LATENTS, CARRY] if latents else [])}
        self.chunks = {}
        for key, tensor in content.items():
            chunk, _, name = key.partition(".")
            # A chunk of which nothing is kept here is one that can be run again all the same.
            kept = self.chunks.setdefault(int(chunk), {})
            if name in names:
                kept[name] = tensor
