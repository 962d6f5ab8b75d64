"""Memory for what travels, used again: freeing and allocating megabytes for every message costs more than copying them.

What was used last is given out first, since it is still in a cache.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

READY = 2
"""Buffers that a channel needs when all goes well: one is filled while another is read."""


class Buffers:
    """Memory that its user gives back. Each buffer grows to the largest it has held.

    Args:
        allocate: makes [n] uint8 of new memory.
        size: bytes foreseen. Some of that size are ready from the start, and written to, so that the first messages do
            not pay for memory a page at a time. 0: nothing is foreseen.
    """

    def __init__(self, allocate: Callable[[int], Tensor], size: int = 0):
        self._allocate = allocate
        self._free: deque[Tensor] = deque(allocate(size).zero_() for _ in range(READY if size else 0))

    def take(self, size: int) -> Tensor | None:
        """At least `size` bytes, or None for none."""
        if not size:
            return None
        buffer = self._free.pop() if self._free else None
        return self._allocate(size) if buffer is None or buffer.numel() < size else buffer

    def give(self, buffer: Tensor | None) -> None:
        """Take a buffer back that nothing reads or writes any more."""
        if buffer is not None:
            self._free.append(buffer)


class Leases:
    """Host memory that comes back by itself when the last tensor that refers to it is gone: nobody need copy out of it.

    Args:
        size: as for `Buffers`.
    """

    def __init__(self, size: int = 0):
        self._buffers = Buffers(partial(torch.empty, dtype=torch.uint8), size)

    def take(self, size: int) -> Tensor:
        """[n] uint8 of at least `size` bytes."""
        buffer = self._buffers.take(size)
        lease = memoryview(buffer.numpy())
        weakref.finalize(lease, self._buffers.give, buffer).atexit = False
        return torch.frombuffer(lease, dtype=torch.uint8)
