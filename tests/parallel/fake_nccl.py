"""The pair behind a channel in one process, with bodies as on CUDA: transfers are ordered by a stream, and what was
aborted ends like any other.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import torch
from torch import Tensor

from parallel.p2p import Link


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

    Attributes:
        calls: what was done to end it.
        error: what it reports.
        waits: set while the host waits for a transfer.
    """

    def __init__(self, wire: Wire, side: int):
        super().__init__(wire, side)
        self.calls: list[str] = []
        self.error = SimpleNamespace(name="SUCCESS")
        self.waits = threading.Event()
        self._begun: deque[tuple[Tensor, int, int]] = deque()

    def recv(self, tensors: list[Tensor], other: int, tag: int) -> SimpleNamespace:
        return SimpleNamespace(wait=lambda: self._begun.append((tensors[0], other, tag)))

    def finish(self) -> None:
        """What the host's wait for the stream does: nothing says that a transfer was aborted."""
        while self._begun:
            tensor, other, tag = self._begun.popleft()
            came = self.wire.sent[other, tag]
            with self.wire.changed:
                self.waits.set()
                self.wire.changed.wait_for(lambda came=came: came or self.wire.closed)
                tensor.copy_(came.popleft()) if came else tensor.fill_(77)

    def get_error(self) -> SimpleNamespace:
        return self.error

    def abort(self) -> None:
        self.calls.append("abort")
        self.wire.close()

    def shutdown(self) -> None:
        self.calls.append("shutdown")


class Queue:
    """A device, and a queue of it, whose work is done when the host waits for it."""

    torch = torch.device("cpu")

    def __init__(self, nccl: Nccl):
        self._nccl = nccl
        self.computed = threading.Event()
        self.computed.set()

    def use(self) -> None:
        pass

    def mark(self, *used: Tensor) -> threading.Event:
        return self.computed

    @contextmanager
    def after(self, mark: threading.Event | None, *used: Tensor) -> Iterator[None]:
        if mark is not None:
            mark.wait()
        yield
        self._nccl.finish()


def pair(timeout_s: float) -> list[Link]:
    """Both sides of a link."""
    host, bodies, links = Wire(), Wire(), []
    for side in range(2):
        nccl = Nccl(bodies, side)
        link = Link(1 - side, "fake", side, Gloo(host, side), nccl, torch.device("cpu"), timeout_s)
        link.device = link.queue = Queue(nccl)
        links.append(link)
    return links
