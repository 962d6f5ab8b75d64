"""StreamDiffusionV2's loop, written straight down: no banks, no places, no schedule.

A row holds the chunk that is at its step, and has caches of its own, one for each layer: six slots of a frame's keys
and values, and a queue that says which of them is written over next. Chunk 0 has two frames and goes through all steps
in a single row, which is then copied to all. In sequential mode it stays the only one.

All is computed in float64. The network is Wan's (`tests.stages.denoise.straight_history`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.stages.denoise.straight_history import FrameKV, Noise, Wan

FIRST = 2
"""Frames of chunk 0; others have one."""


def looked_up(timestep: float, shift: float) -> float:
    """The noise level of a timestep: of 1000 levels, shifted, that of which a thousandfold is nearest."""
    table = [shift * u / (1 + (shift - 1) * u) for u in torch.linspace(1, 0, 1001, dtype=torch.float64).tolist()[:-1]]
    return table[int((1000 * torch.tensor(table, dtype=torch.float64) - timestep).abs().argmin())]


@dataclass
class Cache:
    """Of a layer and a row.

    Attributes:
        slots: keys, rotated, and values; as many as are filled.
        queue: slots to be written over once all are filled, the next one first.
        countdown: passes until the queue moves on.
    """

    countdown: int
    slots: list[FrameKV] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """What a comparison with the attention sink found.

    Attributes:
        chunk, row, layer: where.
        least: likeness of the least like.
        slot: which that is.
        queued: whether it is to be written over.
        held: whether it holds a frame.
        second: likeness of the next one; infinite where there is none.
    """

    chunk: int
    row: int
    layer: int
    least: float
    slot: int
    queued: bool
    held: bool
    second: float


class StreamBatch:
    """The loop.

    Args:
        timesteps: of the steps, as the network is told them.
        noise: where 0 is the step, what enters.
        refresh: position that begins anew; None: none does.
        sink: slots that are compared, and are put back nowhere once they were written over.
        threshold: of the comparison; None: there is none.
        capacity: slots.

    Attributes:
        checks: all comparisons, in order.
        written: (chunk, row, layer, slot), in order.
        deepest: entries of the longest queue.
    """

    def __init__(
        self, net: Wan, timesteps: list[float], shift: float, noise: Noise, *, refresh: int | None = None,
        sink: int = 3, threshold: float | None = None, capacity: int = 6,
    ):  # fmt: skip
        self.net, self.timesteps, self.noise, self.refresh = net, timesteps, noise, refresh
        self.sigmas = [looked_up(t, shift) for t in timesteps]
        self.sink, self.threshold, self.capacity = sink, threshold, capacity
        self.rows = [[Cache(len(timesteps)) for _ in range(net.layers)]]
        self.checks: list[Check] = []
        self.written: list[tuple[int, int, int, int]] = []
        self.deepest = 0

    def batched(self, chunks: int) -> Iterator[Tensor]:
        """Final latents of each chunk: every call takes all rows one step on. Rows without a chunk are left out."""
        yield self._first()
        last = len(self.timesteps) - 1
        self.rows = [deepcopy(self.rows[0]) for _ in self.timesteps]
        held: dict[int, tuple[int, int, Tensor]] = {}
        """By row: its chunk, that chunk's position, and its latents."""
        position = FIRST
        for call in range(1, chunks + last):
            held = {row + 1: chunk for row, chunk in held.items() if row < last}
            if call < chunks:
                position = self._turned(position)
                held[0] = call, position, self.noise(call, 0).double()
                position += 1
            for row in sorted(held):
                chunk, at, x = held[row]
                held[row] = chunk, at, self._step(chunk, row, row, [at], x)
            if last in held:
                yield held[last][2]

    def sequential(self, chunks: int) -> Iterator[Tensor]:
        """Final latents of each chunk: all its steps, one after the other, in a single row."""
        yield self._first()
        position = FIRST
        for chunk in range(1, chunks):
            position = self._turned(position)
            x = self.noise(chunk, 0).double()
            for step in range(len(self.timesteps)):
                x = self._step(chunk, step, 0, [position], x)
            yield x
            position += 1

    def _turned(self, position: int) -> int:
        return self.capacity - 1 if self.refresh is not None and position >= self.refresh else position

    def _first(self) -> Tensor:
        x = self.noise(0, 0).double()
        for step in range(len(self.timesteps)):
            x = self._step(0, step, 0, list(range(FIRST)), x)
        return x

    def _step(self, chunk: int, step: int, row: int, positions: list[int], x: Tensor) -> Tensor:
        def read(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.read(chunk, row, layer, positions, q, k, v)

        told = self.timesteps[step]
        x = x - self.sigmas[step] * self.net.velocity(x, [told] * len(positions), read)
        if step + 1 == len(self.timesteps):
            return x
        level = self.sigmas[step + 1]
        return (1 - level) * x + level * self.noise(chunk, step + 1).double()

    def read(self, chunk: int, row: int, layer: int, positions: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write a chunk's keys and values, and see all there is."""
        cache, k = self.rows[row][layer], self.net.turned(k, positions)
        new = list(zip(k.split(self.net.tokens), v.split(self.net.tokens), strict=True))
        if self.threshold is not None and len(new) == 1:
            self._check(chunk, row, layer, cache, *new[0])
        if positions[-1] >= self.capacity or len(cache.slots) == self.capacity:
            self._write_over(chunk, row, layer, cache, new[0])
        else:
            cache.slots[positions[0] :] = new
            following = positions[-1] + len(new)
            if self.sink <= following < self.capacity and cache.queue[-1:] != [following]:
                cache.queue.append(following)
        self.deepest = max(self.deepest, len(cache.queue))
        keys, values = (torch.cat(part) for part in zip(*cache.slots, strict=True))
        return self.net.attention(self.net.turned(q, positions), keys, values)

    def _write_over(self, chunk: int, row: int, layer: int, cache: Cache, new: FrameKV) -> None:
        slot = cache.queue[0]
        cache.slots[slot] = new
        self.written.append((chunk, row, layer, slot))
        if len(self.rows) == 1 and cache.countdown > 1:
            cache.countdown -= 1
            return
        cache.countdown = len(self.timesteps)
        cache.queue.pop(0)
        if slot >= self.sink:
            cache.queue.append(slot)

    def _check(self, chunk: int, row: int, layer: int, cache: Cache, k: Tensor, v: Tensor) -> None:
        def cosine(a: Tensor, b: Tensor) -> float:
            a, b = a.mean(0), b.mean(0)
            return float(a @ b / (a.norm() * b.norm()))

        held = cache.slots[: self.sink]
        likeness = [(cosine(old_k, k) + cosine(old_v, v)) / 2 for old_k, old_v in held]
        likeness += [0.0] * (self.sink - len(held))
        least = min(likeness)
        slot = likeness.index(least)
        queued = least < self.threshold
        if queued:
            cache.queue.insert(0, slot)
        second = min((x for i, x in enumerate(likeness) if i != slot), default=math.inf)
        self.checks.append(Check(chunk, row, layer, least, slot, queued, slot < len(held), second))
