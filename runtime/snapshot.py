"""What a stream remembers between two chunks, as whoever goes on from it reads it: files by name, wherever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

CONDITIONING, DECODER, OUTPUT, FINISHED = "conditioning", "decoder", "output", "finished"
ANCHOR = "anchor."
"""Marks what a recalibration is made of, in the output's file."""


class Snapshot(ABC):
    """A whole one, on disk (`runtime.state`) or in memory (`runtime.cuts`)."""

    content: dict[str, Any]
    """What holds for all of it: `chunk`, `frames`, `video`, `decodes`, `mark`."""

    @abstractmethod
    def read(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """(tensors, content) of a file of it. Raises OSError, KeyError: it has none of the name."""

    @property
    @abstractmethod
    def video(self) -> Path | None:
        """Where the stream's video was."""

    @property
    def chunk(self) -> int:
        """The chunk that comes next."""
        return self.content["chunk"]

    @property
    def mark(self) -> str | None:
        """What its stream's videos carry, too; None: it is of a version that marked nothing."""
        return self.content.get("mark")

    @cached_property
    def decoder(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the decoder left: (its cache, counters)."""
        return self.read(DECODER)

    @cached_property
    def output(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the output left: (what a recalibration is made of, if one is to come; counters)."""
        return self.read(OUTPUT)

    @property
    def anchor(self) -> dict[str, Tensor]:
        """The attention sink's inputs that a recalibration still to come is made from, by name; empty: none is."""
        tensors = self.output[0]
        if (first := tensors.get("anchor")) is not None:  # of an earlier format: in one, the reference first
            lasting = {"motion": first[:, :, 1:]} if first.shape[2] > 1 else {}
            return {"reference": first[:, :, :1]} | lasting
        return {name.removeprefix(ANCHOR): t for name, t in tensors.items() if name.startswith(ANCHOR)}
