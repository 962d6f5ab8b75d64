"""The pair behind a channel in one process, with bodies as on CUDA: transfers are ordered by a stream, and what was
aborted ends like any other.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from parallel.p2p import Link
from tests.parallel.late import Late


class Wire:
    """What is between two members: copies of what was sent, by direction and tag."""

    def __init__(self):
        self.sent: dict[tuple[int, int], deque[Tensor]] = defaultdict(deque)
        self.closed = False
        self.changed = threading.Condition()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Gloo:
    """One member, for host tensors."""

    def __init__(self, wire: Wire, side: int):
        self.wire, self.side = wire, side

    def send(self, tensors: list[Tensor], other: int, tag: int) -> SimpleNamespace:
        with self.wire.changed:
            self.wire.sent[self.side, tag].append(tensors[0].clone())
            self.wire.changed.notify_all()
        return SimpleNamespace(wait=lambda timeout=None: None)

    def recv(self, tensors: list[Tensor], other: int, tag: int) -> SimpleNamespace:
        return SimpleNamespace(wait=lambda timeout: self._receive(tensors[0], other, tag, timeout))

    def _receive(self, tensor: Tensor, other: int, tag: int, timeout: timedelta) -> None:
        came, wire = self.wire.sent[other, tag], self.wire
        with wire.changed:
            wire.changed.wait_for(lambda: came or wire.closed, timeout.total_seconds())
            if came:
                return tensor[: len(came[0])].copy_(came.popleft())
        wire.close()
        raise RuntimeError("Connection closed by peer")


class Nccl(Gloo):
    """One member, for bodies.

    Args:
        device: whose queues transfers are work of.

    Attributes:
        calls: what was done to end it.
        error: what it reports.
        waits: set while somebody waits for a transfer.
    """

    def __init__(self, wire: Wire, side: int, device: Late):
        super().__init__(wire, side)
        self.device, self.calls = device, []
        self.error = SimpleNamespace(name="SUCCESS")
        self.waits = threading.Event()

    def recv(self, tensors: list[Tensor], other: int, tag: int) -> SimpleNamespace:
        transfer = partial(self._transfer, tensors[0], self.wire.sent[other, tag])
        return SimpleNamespace(wait=lambda: self.device.later(transfer))

    def _transfer(self, tensor: Tensor, came: deque[Tensor]) -> None:
        """Nothing says that a transfer was aborted."""
        with self.wire.changed:
            self.waits.set()
            self.wire.changed.wait_for(lambda: came or self.wire.closed)
            tensor.copy_(came.popleft()) if came else tensor.fill_(77)

    def get_error(self) -> SimpleNamespace:
        return self.error

    def abort(self) -> None:
        self.calls.append("abort")
        self.wire.close()

    def shutdown(self) -> None:
        assert not any(self.wire.sent.values()), "something is in the air"
        self.calls.append("shutdown")


def pair(timeout_s: float) -> list[Link]:
    """Both sides of a link, each with a device of its own."""
    host, bodies, links = Wire(), Wire(), []
    for side in range(2):
        device = Late(torch.device("cpu"))
        groups = Gloo(host, side), Nccl(bodies, side, device)
        links.append(Link(1 - side, "fake", side, *groups, device, timeout_s))
    return links
