"""Channels between threads of one process.

A message's tensors are there when it is delivered, as between processes: where a device computes them, a thread of the
channel's waits for that, and the sender goes on. On the processor they are there when they are sent, so there the
sender delivers itself.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import devices
from devices import Mark, Queue
from parallel.channels import (
    CREDITS,
    Arrival,
    ChannelError,
    Closed,
    Credits,
    Failure,
    Inbox,
    Receiver,
    Sender,
    header_of,
    once,
)
from parallel.failures import one_line
from parallel.message import Message, pack_body, pack_header, unpack


class _Late(NamedTuple):
    """A message that may not be there yet.

    Attributes:
        header: with the times that were known when it was sent.
        message: as it was sent.
        body: its tensors, packed.
        computed: when they are there; None: already, or there are none.
    """

    header: Tensor
    message: Message
    body: Tensor | None
    computed: Mark | None


class LocalChannel:
    """A channel between two threads of one process.

    Args:
        source, target: worker indices of the two ends.
        inbox: the target's.
        credits: messages that may be under way.
        timeout_s: longest wait of `send` for a credit, and of `close` for what was sent.
        device: the target's, of the same kind as the source's; None: wherever the tensors of a message are.

    Attributes:
        sender, receiver: the two ends.
    """

    def __init__(
        self,
        source: int,
        target: int,
        inbox: Inbox,
        credits: int = CREDITS,
        timeout_s: float = 60.0,
        device: torch.device | None = None,
    ):
        left = Credits(target, credits)
        self.sender: Sender = _LocalSender(source, target, inbox, left, timeout_s, device)
        self.receiver: Receiver = _LocalReceiver(source, left)


class _LocalSender(Sender):
    def __init__(
        self, source: int, target: int, inbox: Inbox, credits: Credits, timeout_s: float, device: torch.device | None
    ):
        self.peer = target
        self._source, self._inbox, self._credits, self._timeout_s = source, inbox, credits, timeout_s
        self._device = device
        self._late: queue.SimpleQueue[_Late | None] = queue.SimpleQueue()
        """What the courier is to deliver; None: the end."""
        self._courier: threading.Thread | None = None
        self._lock = threading.Lock()
        self._tell_end = once(lambda: inbox.put(Closed(source)))

    def send(self, message: Message) -> None:
        header = header_of(message)
        self._credits.take(self._timeout_s)
        try:
            body = pack_body(message)
        except BaseException:
            self._credits.give()  # nothing is under way
            raise
        computed = None if body is None else devices.of(body.device).mark()
        if self._courier is None and (computed is not None or message.spans):
            self._start()
        if self._courier is None:
            self._deliver(header, body, self._credits.give)
        else:  # whatever it is, so that it does not overtake
            self._late.put(_Late(header, message, body, computed))

    def cut(self) -> None:
        self._credits.stop("this end of the channel was cut off")

    def close(self) -> None:
        self._credits.stop("this end of the channel is closed")
        if self._courier is not None:
            self._late.put(None)
            self._courier.join(self._timeout_s)
        self._tell_end()

    def _start(self) -> None:
        with self._lock:
            if self._courier is None:
                name = f"{self._source}-{self.peer} courier"
                courier = threading.Thread(target=self._carry, name=name, daemon=True)
                courier.start()
                self._courier = courier

    def _carry(self) -> None:
        """On the courier: deliver everything in order, each when it is there."""
        own: Queue | None = None
        try:
            while (late := self._late.get()) is not None:
                header, message, body, computed = late
                if body is not None:
                    device = devices.of(self._device or body.device)
                    if own is None:
                        own = device.queue()
                        own.use()
                    device.follow(computed, body)
                    body = body.to(device.torch, non_blocking=True)
                    device.mark().wait()
                if message.spans:
                    header = pack_header(message.settle())
                self._deliver(header, body, partial(self._read, body))
                del late, message, body  # or this thread would keep their memory until the next one comes
        except Exception as error:
            lost = ChannelError(self._source, one_line(error))
            self._credits.stop(lost.reason)
            self._inbox.put(Failure(self._source, lost))
        finally:
            if own is not None:
                own.close()

    def _deliver(self, header: Tensor, body: Tensor | None, give_back: Callable[[], None]) -> None:
        self._inbox.put(Arrival(self._source, unpack(header, body), once(give_back)))

    def _read(self, body: Tensor | None) -> None:
        """In the thread that has read or taken a body: its memory stays for as long as that thread's queue needs it."""
        if body is not None:
            devices.of(body.device).follow(None, body)
        self._credits.give()


class _LocalReceiver(Receiver):
    def __init__(self, source: int, credits: Credits):
        self.peer, self._credits = source, credits

    def cut(self) -> None:
        self._credits.stop("has cut off the channel")

    def close(self) -> None:
        self._credits.stop("has closed the channel")
