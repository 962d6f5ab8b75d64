"""What a message takes between two workers: ping-pong over the very channels that streams use."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from time import perf_counter, thread_time

import numpy as np
import torch
import torch.distributed as dist

import devices
from conf.schema.cluster import Link
from parallel.channels import Arrival, Failure
from parallel.message import Message
from parallel.p2p import connect_all
from parallel.transport import NCCL

WARM = 5
"""Round trips that do not count: buffers grow, connections open their windows."""


@dataclass
class Trips:
    """What was measured of messages of one size, in seconds.

    Attributes:
        size: bytes of the body.
        one_way: half of every round trip.
        handled: processor time of a worker's own thread per message: sending one and copying one out. What it waits for
            meanwhile, a core included, is no part of it.
    """

    size: int
    one_way: list[float]
    handled: list[float]


class BothWays:
    """Both directions between this worker and another.

    Args:
        store: shared by the two.
        me, peer: indices of workers; the lower one is the one that counts.
        device: where bodies are.
        timeout_s: longest wait for the peer.
        name: told apart from other measurements by.
    """

    def __init__(self, store: dist.Store, me: int, peer: int, device: torch.device, timeout_s: float, name: str = ""):
        self.me, self.peer, self.device, self.timeout_s = me, peer, device, timeout_s
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        there, back = f"{name}{me:04d}-{peer:04d}", f"{name}{peer:04d}-{me:04d}"
        # By NCCL where it can go, as large messages do; how large they are is not known here.
        some = {there: 1, back: 1}
        links = connect_all(store, me, {there: peer, back: peer}, device, timeout_s, some, transport=NCCL)
        self.sender, self.receiver = links[there].sender(self.inbox), links[back].receiver(self.inbox)

    def ask(self, size: int, rounds: int) -> Trips:
        """Send messages of `size` bytes, each when the one before has come back."""
        body, found = torch.zeros(size, dtype=torch.uint8, device=self.device), Trips(size, [], [])
        for number in range(WARM + rounds):
            start, spent = perf_counter(), thread_time()
            self.sender.send(Message("step", chunk=number, tensors={"x": body}))
            message = self._take()
            end, spent = perf_counter(), thread_time() - spent
            if message is None:
                raise ConnectionError(f"worker {self.peer} left")
            if number >= WARM:
                found.one_way.append((end - start) / 2)
                found.handled.append(spent)
        return found

    def answer(self) -> None:
        """Send back what comes, until the other end has had enough."""
        while (message := self._take()) is not None:
            self.sender.send(message)

    def close(self) -> None:
        """Tell the other end, and stop."""
        self.sender.close()
        self.receiver.close()

    def _take(self) -> Message | None:
        """The next message with tensors of its own, as a worker takes it; None: no more."""
        item = self.inbox.get(timeout=self.timeout_s)
        if isinstance(item, Failure):
            raise item.error
        if not isinstance(item, Arrival):
            return None
        return item.take()


def answer_locally(folder: str, gpu: bool, timeout_s: float) -> None:
    """Be worker 1 of a measurement, in a process of its own on the same machine; `folder` holds the store."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    device = devices.choose("auto" if gpu else "cpu", 1)
    devices.of(device).use()
    ends = BothWays(store, 1, 0, device, timeout_s)
    ends.answer()
    ends.close()


def fit(trips: list[Trips]) -> tuple[Link, float]:
    """A link, and the seconds of a worker's own time per message (`StageTimes.hop_s`), that explain the medians.

    A worker's own part is that of the smallest message; copying what is larger counts as bandwidth.
    """
    sizes = np.array([t.size for t in trips], float)
    times = np.array([np.median(t.one_way) for t in trips])
    smallest = int(sizes.argmin())
    own = min(float(np.median(trips[smallest].handled)), float(times[smallest]))
    latency = float(times[smallest]) - own
    beyond = sizes > sizes[smallest]
    # Least squares through the smallest message, each size weighted alike.
    slopes = (times[beyond] - times[smallest]) / (sizes[beyond] - sizes[smallest])
    slope = float(np.median(slopes)) if beyond.any() else 0.0
    return Link(latency, 1 / slope if slope > 0 else float("inf")), own
