"""Random draws as pure functions of (seed, stream id, chunk, step), in float32 on the CPU.

A counter-based generator (Philox) is keyed by seed and stream and positioned by chunk and step, so no draw
depends on which process makes it, in which order, or how many came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """All randomness of one stream."""

    seed: int
    stream: str

    def _generator(self, purpose: str, chunk: int, step: int) -> np.random.Generator:
        key = hashlib.sha256(f"{self.seed}/{self.stream}/{purpose}".encode()).digest()[:16]
        counter = [0, 0, step, chunk]
        return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64), counter=counter))

    def noise(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise that enters `step` of `chunk`, float32."""
        return torch.from_numpy(self._generator("noise", chunk, step).standard_normal(shape, dtype=np.float32))

    def distance(self, chunk: int, step: int, low: int, high: int) -> int:
        """The attention sink's distance for one forward, uniform over low .. high."""
        return int(self._generator("sink_distance", chunk, step).integers(low, high + 1))
