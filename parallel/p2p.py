"""Connects pairs of processes over torch.distributed point-to-point: gloo, and NCCL for large bodies between cards.

Every channel has a two-member process group of its own, so a dead peer takes no other channel down. Its two ends are in
`parallel.ends`; what travels how is decided in `parallel.transport`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

import devices
from devices import Device
from parallel import channels
from parallel.channels import ChannelError, Inbox, Peer, Receiver, Sender
from parallel.ends import BODY, CLOCK, CUT, GroupReceiver, GroupSender
from parallel.failures import one_line
from parallel.message import HEADER_BYTES
from parallel.offset import Offset
from parallel.transport import QUEUES, Place, by_nccl, gloo, nccl, told_places

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
        bodies: the same two, for bodies; `group` itself where those go through the hosts' memories, too.
        device: of bodies, at this end.
        timeout_s: longest wait for the peer.
        expected: bytes of the longest body that is foreseen.
        clock: seconds that never go back.

    Attributes:
        host: whether bodies go through the hosts' memories.
        queue: of what the channel does on `device`.
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
        device: Device,
        timeout_s: float,
        expected: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.peer, self.name, self.timeout_s, self.clock = peer, name, timeout_s, clock
        self.device, self.queue, self.offset = device, device.queue(), Offset(clock)
        self._side, self._other, self._timeout = side, 1 - side, timedelta(seconds=timeout_s)
        self._group, self._bodies, self._cut = group, bodies, False
        self.host = bodies is group
        # One thread does it: NCCL joins threads of its own then.
        self._abort = channels.once(bodies.abort)
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
                transfer(self.memory(64).zero_(), BODY)

    def memory(self, size: int) -> Tensor:
        """[size] uint8 of new memory on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self.device.torch)

    def send(self, tensor: Tensor, tag: int) -> None:
        """Send a contiguous tensor; done on return."""
        self.begin(tensor, tag)()

    def begin(self, tensor: Tensor, tag: int) -> Callable[[], None]:
        """Begin to send a contiguous tensor, which must stay as it is until the transfer is over.

        Returns:
            What waits for that; it raises RuntimeError if the transfer did not end in time or the connection closed.
        """
        return self._end(self._of(tag).send([tensor], self._other, tag), tag)

    def receive(self, tensor: Tensor, tag: int) -> None:
        """Receive into a contiguous tensor; done on return."""
        self.post(tensor, tag)()

    def post(self, tensor: Tensor, tag: int) -> Callable[[], None]:
        """Begin to receive into a contiguous tensor; returns what waits for it, as `begin` does."""
        return self._end(self._of(tag).recv([tensor], self._other, tag), tag)

    def _end(self, work: dist.Work, tag: int) -> Callable[[], None]:
        if self.host or tag != BODY:
            return partial(work.wait, self._timeout)
        work.wait()  # this thread's queue does, and not the host, which would if it were given a time
        return self.device.mark().wait

    def check(self) -> None:
        """Raise RuntimeError if a body that was received may be garbage. On CUDA a transfer that was aborted ends like
        any other; the cut is noted before the abort, so whoever has waited for the transfer sees it.
        """
        if self._cut:
            raise RuntimeError("the transfer was cut off")
        if not self.host and (state := self._bodies.get_error()).name != "SUCCESS":
            raise RuntimeError(f"NCCL reports {state.name}")

    def cut(self) -> None:
        """Break the pair: whatever waits on it, in any thread and at the peer, fails now."""
        self._cut = True
        # gloo's abort() wakes nobody, but a wait that runs out of time closes the pair.
        with suppress(RuntimeError):
            self._group.recv([torch.empty(1)], self._other, CUT).wait(timedelta(milliseconds=1))
        if not self.host:
            self._abort()

    def shut(self) -> None:
        """Give back the queue and what NCCL holds, when both threads have ended in good order."""
        self.queue.close()
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
    transport: str = "auto",
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
        transport: as `launcher.transport`, the same for both.

    Raises:
        ChannelError: the peer did not come in time, or the store is gone.
        ValueError: `me` is `peer`.
    """
    if me == peer:
        raise ValueError(f"channel {name}: worker {me} talks to itself; use a LocalChannel")
    return link(store, int(me > peer), peer, name, torch.device(device), timeout_s, expected, clock, transport)


def link(
    store: dist.Store,
    side: int,
    peer: Peer,
    name: str,
    device: torch.device,
    timeout_s: float,
    expected: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    transport: str = "auto",
) -> Link:
    """One side, 0 or 1, of a new pair; the rest is as for `connect`."""
    store, timeout = dist.PrefixStore(name, store), timedelta(seconds=timeout_s)
    own = devices.of(device)
    try:
        group = bodies = gloo(store, side, 2, timeout)
        if by_nccl(transport, told_places(store, side, 2, Place.of(own)), expected):
            # Its watchdog ends the process, so it comes last: the beats notice first, and `cut` aborts the transfer.
            bodies = nccl(dist.PrefixStore("bodies", store), side, 2, 3 * timeout, QUEUES)
        made = Link(peer, name, side, group, bodies, own, timeout_s, expected, clock)
        made.meet()
        return made
    except RuntimeError as error:
        raise ChannelError(peer, f"channel {name} not connected in {timeout_s:g} s ({one_line(error)})") from error


def connect_all(
    store: dist.Store,
    me: int,
    peers: Mapping[str, int],
    device: torch.device | str,
    timeout_s: float,
    expected: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    transport: str = "auto",
) -> dict[str, Link]:
    """`connect` all channels of a worker, given as name -> peer, in the order that cannot deadlock.

    Args:
        expected: per channel, as for `connect`.
        transport: as for `connect`.
    """
    bodies = expected or {}
    return {
        name: connect(store, me, peers[name], name, device, timeout_s, bodies.get(name, 0), clock, transport)
        for name in sorted(peers)
    }
