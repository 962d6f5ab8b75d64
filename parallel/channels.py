"""Channels: one direction between two workers, with bounded memory and failures that arrive as events.

A worker has one inbox, a queue, into which all its receivers put

    Arrival(peer, message)            a message; `take()` it, or call `release()` when its tensors are no longer read
    Closed(peer)                      the peer closed its end in good order: nothing more will come
    Failure(peer, error)              the peer is gone or silent; reported once, the channel is dead

A message holds one of its channel's credits from `send` until the receiving worker releases it. So a channel
never holds more than `credits` messages anywhere between the two workers, and a slow worker slows the one
before it instead of growing memory.

Tensors: `send` takes them over; the caller may let go of them, and must not write to them. Those of an arrival are the
receiver's after `take`; those that are looked at without must not be read after `release`.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from parallel.message import Message, pack_header
from parallel.plan import Member

CREDITS = 2

Peer = int | Member
"""Who is at the other end: a worker by its index, or one of its processes."""


class ChannelError(Exception):
    """A channel cannot do its work: `worker 3: why`, one line."""

    def __init__(self, peer: Peer, reason: str):
        self.peer, self.reason = peer, " ".join(reason.split())
        super().__init__(f"worker {peer}: {self.reason}")


@dataclass(frozen=True)
class Arrival:
    """A message from `peer` that came at `at`. All its moments are by this process's clock.

    `borrowed`: its tensors are in memory of the channel's, which is used again after `give_back`.
    """

    peer: Peer
    message: Message
    give_back: Callable[[], None]
    at: float = field(default_factory=time.perf_counter)
    borrowed: bool = False

    def take(self) -> Message:
        """The message, with tensors that are the caller's for good; gives the credit back, also where it raises.

        Raises:
            torch.OutOfMemoryError: the device has no room for a copy of borrowed ones.
        """
        lent, self.message.tensors = self.message.tensors, {}
        try:
            # Where there is no room for a copy, the message has no tensors, and the channel its memory all the same.
            self.message.tensors = {name: tensor.clone() for name, tensor in lent.items()} if self.borrowed else lent
        finally:
            self.give_back()
        return self.message

    def release(self) -> None:
        """Give its credit and memory back; calling it again does nothing."""
        self.message.tensors = {}
        self.give_back()


@dataclass(frozen=True)
class Closed:
    """`peer` closed its end in good order."""

    peer: Peer


@dataclass(frozen=True)
class Failure:
    """The channel with `peer` broke."""

    peer: Peer
    error: ChannelError


Event = Arrival | Closed | Failure


class Inbox(queue.SimpleQueue):
    """Where everything for one worker comes in. `at_once` sees every item first, in the thread that brings it. What it
    raises is put before the item: it is no fault of the thread, or of the peer that sent the item.
    """

    def __init__(self):
        self.at_once: Callable[[object], None] = lambda item: None

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Show an item to `at_once`, and queue it."""
        try:
            self.at_once(item)
        except Exception as error:
            super().put(error)
        super().put(item)


class Sender(ABC):
    """The sending end of a channel to `peer`. Any thread may send.

    Attributes:
        peer: who is at the other end.
        offset: seconds to be added to a moment of the peer's clock, to have it by this end's.
    """

    peer: Peer
    offset: float = 0.0

    @abstractmethod
    def send(self, message: Message) -> None:
        """Hand a message over. Waits only while all credits are used.

        Raises:
            ChannelError: no credit came back within the timeout, the peer failed, or the channel is closed.
            ValueError: the message cannot travel (see `message.pack`).
            torch.OutOfMemoryError: there is no room to pack it. As with a ValueError, another one may be sent.
        """

    @abstractmethod
    def cut(self) -> None:
        """Break the channel: whoever waits at this end, in any thread, goes on with a ChannelError."""

    @abstractmethod
    def close(self) -> None:
        """Deliver what was sent, tell the peer that this is the end, stop. Calling it again does nothing."""


class Receiver(ABC):
    """The receiving end of a channel from `peer`; what comes goes to the inbox it was made with.

    Attributes:
        peer, offset: as of the sending end.
    """

    peer: Peer
    offset: float = 0.0

    @abstractmethod
    def cut(self) -> None:
        """Break the channel: nothing comes any more."""

    @abstractmethod
    def close(self) -> None:
        """Take nothing more; the peer's next `send` raises. Calling it again does nothing."""


class Credits:
    """The sender's count of messages that it may still send.

    Args:
        peer: who gives them back; named in errors.
        count: how many there are.
    """

    def __init__(self, peer: Peer, count: int):
        if count < 1:
            raise ValueError(f"credits={count}: a channel needs at least 1")
        self._peer, self._count, self._left = peer, count, count
        self._reason = ""
        self._changed = threading.Condition()

    def take(self, timeout_s: float) -> None:
        """Use one, waiting for it if need be.

        Raises:
            ChannelError: none came within `timeout_s`, or the channel is dead.
        """
        with self._changed:
            ready = self._changed.wait_for(lambda: self._left or self._reason, timeout_s)
            if self._reason:
                raise ChannelError(self._peer, self._reason)
            if not ready:
                raise ChannelError(self._peer, f"has released none of {self._count} messages for {timeout_s:g} s")
            self._left -= 1

    def give(self) -> None:
        """One came back."""
        with self._changed:
            self._left += 1
            self._changed.notify()

    def stop(self, reason: str) -> None:
        """From now on `take` raises with this reason, waiting callers included; the first reason stays."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()


def once(action: Callable[[], None]) -> Callable[[], None]:
    """A callable that runs `action` the first time only, whichever thread calls it."""
    gate = threading.Lock()

    def run() -> None:
        if gate.acquire(blocking=False):
            action()

    return run


def header_of(message: Message) -> Tensor:
    """The header of a message that a worker sends; what one channel cannot carry, every channel refuses.

    It has the times of work that is over, and room for those of work that is not.

    Raises:
        ValueError: it cannot be packed, or is a beat: those are the channels' own.
    """
    if message.kind == "beat":
        raise ValueError("message kind 'beat': channels send these themselves")
    if message.spans:
        if all(span.over for _, span in message.spans):
            message.settle()
        message.times = {worker: 0.0 for worker, _ in message.spans} | message.times
    return pack_header(message)
