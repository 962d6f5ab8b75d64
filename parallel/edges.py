"""Order between a worker's CUDA stream and a channel's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Edges:
    """Where the worker's compute stream and a channel's own stream wait for each other; nothing to do on CPU.

    Both edges are host waits in channel threads, never in the worker's. A message is announced only when its
    tensors are computed and delivered only when it is complete, so no NCCL kernel spins on either side while
    somebody computes, and the worker needs no wait of its own.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self, *used: Tensor) -> torch.cuda.Event | None:
        """On the worker's thread: the point its stream has reached, having used these tensors."""
        if self._stream is None:
            return None
        compute = torch.cuda.current_stream(self._device)
        for tensor in used:
            tensor.record_stream(compute)
        return compute.record_event(torch.cuda.Event(blocking=True))

    @contextmanager
    def after(self, mark: torch.cuda.Event | None, *used: Tensor) -> Iterator[None]:
        """On a channel thread: wait for `mark`, work on the channel's stream, wait until that is done."""
        if self._stream is None:
            yield
            return
        if mark is not None:
            mark.synchronize()
        with torch.cuda.stream(self._stream):
            for tensor in used:
                tensor.record_stream(self._stream)
            yield
            self._stream.record_event(torch.cuda.Event(blocking=True)).synchronize()
