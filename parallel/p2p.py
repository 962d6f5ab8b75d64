"""Connects pairs of processes over torch.distributed point-to-point: gloo on CPU, NCCL for bodies on CUDA.

Every channel has a two-member process group of its own, so a dead peer takes no other channel down. Its two ends are in
`parallel.ends`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

import devices
from parallel import channels
from parallel.address import gloo_device
from parallel.channels import ChannelError, Inbox, Peer, Receiver, Sender
from parallel.ends import BODY, CLOCK, CUT, GroupReceiver, GroupSender
from parallel.failures import one_line
from parallel.message import HEADER_BYTES
from parallel.offset import Offset

# Bytes beside an expected body: of sound, actions and whatever else is small and goes along.
SMALL = 1 << 16
# Round trips by which the two ends compare their clocks before the first message.
TRIPS = 4


class Link:
    """The connected pair behind one channel, made by `connect`.

    Each member makes one end of it, soon after connecting: until then the other hears nothing from it.

    Args:
        peer, name: who is at the other end, and what errors call the channel.
        side: 0 or 1, of this process in the groups.
        group: two processes that exchange host tensors.
        bodies: the same two, for bodies; `group` itself where those are host tensors, too.
        device: of bodies.
        timeout_s: longest wait for the peer.
        expected: bytes of the longest body that is foreseen.
        clock: seconds that never go back.

    Attributes:
        queue: of the bodies' transfers, on `device`.
        room: bytes of the longest frame at first.
        offset: of the peer's clock, kept fresh by the ends.
    """

    def __init__(
        self,
        peer: Peer,
        name: str,
        side: int,
        group: dist.Backend,
        bodies: dist.Backend,
        device: torch.device,
        timeout_s: float,
        expected: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.peer, self.name, self.timeout_s, self.clock = peer, name, timeout_s, clock
        self.device, self.offset = devices.of(device), Offset(clock)
        self.queue = self.device.queue()
        self._side, self._other, self._timeout = side, 1 - side, timedelta(seconds=timeout_s)
        self._group, self._bodies, self._cut = group, bodies, False
        self.room = HEADER_BYTES + (expected + SMALL if expected and self.host else 0)

    def sender(
        self, inbox: Inbox | None = None, credits: int = channels.CREDITS, check: Callable[[], None] | None = None
    ) -> Sender:
        """The sending end.

        Args:
            inbox: the peer's failure or close is put there too, not only raised by `send`.
            credits: messages that may be under way.
            check: raises if what was computed may be wrong; called before a message leaves, once its tensors are there.
        """
        return GroupSender(self, inbox, credits, check)

    def receiver(self, inbox: Inbox) -> Receiver:
        """The receiving end; what comes is put into the inbox."""
        return GroupReceiver(self, inbox)

    def meet(self) -> None:
        """Compare clocks, and make what the first transfers make. Both members call it, before any other transfer."""
        stamp = torch.empty(3, dtype=torch.float64)

        def say() -> None:
            self.send(torch.tensor(self.offset.stamp(), dtype=torch.float64), CLOCK)

        def hear() -> None:
            self.receive(stamp, CLOCK)
            self.offset.hear(tuple(stamp.tolist()), self.clock())

        first, second = ((say, hear), (hear, say))[self._side]
        for _ in range(TRIPS):
            first()
            second()
        if self.host:
            return
        # The first transfers of bodies make the communicator and need the store; afterwards nothing does.
        for transfer in ((self.send, self.receive), (self.receive, self.send))[self._side]:
            with self.queue.after(None):
                transfer(torch.zeros(64, dtype=torch.uint8, device=self.device.torch), BODY)

    def send(self, tensor: Tensor, tag: int) -> None:
        """Send a contiguous tensor; done on return (gloo) or in the order of the current stream (NCCL)."""
        self.wait(self.begin(tensor, tag), tag)

    def begin(self, tensor: Tensor, tag: int) -> dist.Work:
        """Begin to send a contiguous tensor, which must stay as it is until the work was waited for."""
        return self._of(tag).send([tensor], self._other, tag)

    def receive(self, tensor: Tensor, tag: int) -> None:
        """Receive into a contiguous tensor; done on return (gloo) or in the order of the current stream (NCCL)."""
        self.wait(self.post(tensor, tag), tag)

    def post(self, tensor: Tensor, tag: int) -> dist.Work:
        """Begin to receive into a contiguous tensor."""
        return self._of(tag).recv([tensor], self._other, tag)

    def wait(self, work: dist.Work, tag: int) -> None:
        """Wait for a transfer. Raises RuntimeError if it did not end in time or the connection closed."""
        if tag == BODY and not self.host:
            work.wait()  # given a time, NCCL would block the host
        else:
            work.wait(self._timeout)

    def check(self) -> None:
        """Raise RuntimeError if a body that was received may be garbage. On CUDA a transfer that was aborted ends like
        any other; the cut is noted before the abort, so whoever has waited for the transfer sees it.
        """
        if self._cut:
            raise RuntimeError("the transfer was cut off")
        if not self.host and (state := self._bodies.get_error()).name != "SUCCESS":
            raise RuntimeError(f"NCCL reports {state.name}")

    @property
    def host(self) -> bool:
        """Whether bodies travel between hosts' memories."""
        return self._bodies is self._group

    def cut(self) -> None:
        """Break the pair: whatever waits on it, in any thread and at the peer, fails now."""
        self._cut = True
        # gloo's abort() wakes nobody, but a wait that runs out of time closes the pair.
        with suppress(RuntimeError):
            self._group.recv([torch.empty(1)], self._other, CUT).wait(timedelta(milliseconds=1))
        if not self.host:
            self._bodies.abort()

    def shut(self) -> None:
        """Give back what NCCL holds, when both ends have ended in good order."""
        if not self.host and not self._cut:
            self._bodies.shutdown()

    def _of(self, tag: int) -> dist.Backend:
        return self._bodies if tag == BODY else self._group


def connect(
    store: dist.Store,
    me: int,
    peer: int,
    name: str,
    device: torch.device | str,
    timeout_s: float,
    expected: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Link:
    """Connect with `peer`, which calls this with the same name at about the same time; blocks until it does.

    A worker connects its channels one after another *in the order of their names*: then the first name that is not
    connected yet is the next one of both its members, and no ring of workers can wait for itself.

    Args:
        store: shared by all workers, used only during the call (TCPStore, FileStore, ...).
        me, peer: worker indices.
        name: of the channel, which is one direction between two workers; used once per store.
        device: where bodies are packed and arrive, whatever the device of what is sent.
        timeout_s: longest wait for the peer, here and from then on.
        expected: bytes of the longest body that is foreseen, the same for both; longer ones travel, too.
        clock: of this worker, in seconds; all moments of its messages are by it.

    Raises:
        ChannelError: the peer did not come in time, or the store is gone.
        ValueError: `me` is `peer`.
    """
    if me == peer:
        raise ValueError(f"channel {name}: worker {me} talks to itself; use a LocalChannel")
    return link(store, int(me > peer), peer, name, torch.device(device), timeout_s, expected, clock)


def link(
    store: dist.Store,
    side: int,
    peer: Peer,
    name: str,
    device: torch.device,
    timeout_s: float,
    expected: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Link:
    """One side, 0 or 1, of a new pair; the rest is as for `connect`."""
    store, timeout = dist.PrefixStore(name, store), timedelta(seconds=timeout_s)
    try:
        group = bodies = _gloo(store, side, timeout)
        if not devices.of(device).immediate:
            # Its watchdog ends the process, so it comes last: the beats notice first, and `cut` aborts the transfer.
            bodies = dist.ProcessGroupNCCL(dist.PrefixStore("bodies", store), side, 2, 3 * timeout)
        made = Link(peer, name, side, group, bodies, device, timeout_s, expected, clock)
        made.meet()
        return made
    except RuntimeError as error:
        raise ChannelError(peer, f"channel {name} not connected in {timeout_s:g} s ({one_line(error)})") from error


def _gloo(store: dist.Store, side: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [gloo_device(store)]
    options._threads = 1  # they serve collectives, of which there are none
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, side, 2, options)


def connect_all(
    store: dist.Store,
    me: int,
    peers: Mapping[str, int],
    device: torch.device | str,
    timeout_s: float,
    expected: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Link]:
    """`connect` all channels of a worker, given as name -> peer, in the order that cannot deadlock.

    Args:
        expected: per channel, as for `connect`.
    """
    bodies = expected or {}
    return {
        name: connect(store, me, peers[name], name, device, timeout_s, bodies.get(name, 0), clock)
        for name in sorted(peers)
    }
