"""The two ends of a channel between processes.

Four kinds of transfer share a `Link`, told apart by their tag:

    sender -> receiver   frame    uint8, host: a header (a message, a beat, or all zeros: the end) and the body if there
                                  is *room* for it; its receive is posted ahead, for the longest frame there may be
    sender -> receiver   body     uint8: one there was no room for; its receive is posted only then
    receiver -> sender   credit   [4] float64, host: how many messages were released (0: a beat, -1: the end), and a
                                  stamp of `parallel.offset`; beats carry one, too
    both ways            clock    [3] float64, host: a stamp; only while connecting

Between hosts' memories there is room from the start for what the plan expects, and a body that found none makes room
for all that follow, at both ends: then a message is one transfer. With dozens of workers on a machine the wake-ups of
threads cost more than copies do, so on processors the thread that sends begins the transfer, too, unless the plan
expects megabytes (`LARGE`): those the out thread packs, beside the worker's next pass. By NCCL bodies travel
by themselves, from card to card.

What a device computes is sent when it is there: the out thread has the body packed by a queue of the channel's, waits
for that, and only then announces it, with the times that the work took. What arrives for a device is there when it is
delivered. So a worker's thread waits for neither.

Each end runs two daemon threads, one out and one in, because a gloo transfer cannot be polled. Out threads send beats
at a steady pace, and a sender answers each of its receiver's at once, which gives the offset of their clocks. An in
thread that hears nothing for `timeout_s`, or sees the connection closed, breaks the channel and reports it once.
Backpressure is the credits alone: in threads always keep reading, so a peer that computes for long is not mistaken for
a dead one. (A peer whose Python cannot run, stopped or in C code that keeps the GIL, is.)

Closing: the sender sends its end after all messages and the receiver answers with its own, or the other way round.
An end that has sent one and heard one is done, and nothing is in the air when the sockets close.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from devices import Mark
from parallel import channels
from parallel.buffers import Buffers, Leases
from parallel.channels import Arrival, ChannelError, Closed, Credits, Failure, Inbox, Receiver, Sender, once
from parallel.failures import why
from parallel.message import HEADER_BYTES, Message, body_bytes, pack_body, pack_header, unpack
from parallel.transport import LARGE

if TYPE_CHECKING:
    from parallel.p2p import Link

FRAME, BODY, CREDIT, CLOCK, CUT = range(5)  # tags
BEAT, END = 0, -1  # credits
END_HEADER = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
# Beats per timeout.
BEATS = 4
# Frames that may still be on their way when the next one is begun.
AHEAD = 2
# Credits go back when this part of them has been released: every transfer wakes four threads.
SHARE = 4
# Longest wait of close() for a peer that answers nothing; in good order it takes milliseconds.
CLOSE_S = 5.0


class _End:
    """What both ends share: threads, beats, the one report of a failure, and the close."""

    def __init__(self, link: Link, inbox: Inbox | None):
        self.peer, self._link, self._inbox = link.peer, link, inbox
        self._out: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What the out thread is to do; None: send the end, and stop."""
        self._lock = threading.Lock()
        self._over = False  # ended, or broken and reported: what happens later is a consequence
        self._closing = False
        self._running = 2
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=f"{link.name} {loop.__name__}", daemon=True)
            for loop in (self._send_all, self._receive_all)
        ]
        for thread in self._threads:
            thread.start()
        # A daemon thread that returns from C++ into a dying interpreter may abort the process: end it before.
        weakref.finalize(self, _abandon, link, self._out, self._threads)

    @property
    def offset(self) -> float:
        return self._link.offset.seconds

    def cut(self) -> None:
        """Break the channel."""
        self._stop("this end of the channel was cut off")
        self._link.cut()

    def close(self) -> None:
        self._closing = True
        self._out.put(None)
        deadline = time.monotonic() + min(CLOSE_S, self._link.timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        _abandon(self._link, self._out, self._threads)

    @abstractmethod
    def _beat(self) -> None:
        """Send a sign of life."""

    @abstractmethod
    def _end(self) -> None:
        """Send the end."""

    @abstractmethod
    def _receive_all(self) -> None:
        """Take what comes until the peer's end."""

    def _send_all(self) -> None:
        clock = self._link.clock
        due = clock()
        while True:
            if (left := due - clock()) <= 0:
                self._beat()
                due = clock() + self._link.timeout_s / BEATS
                continue
            try:
                act = self._out.get(timeout=left)
            except queue.Empty:
                continue
            if act is None:
                break
            act()
        self._end()
        self._over = True

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            self._link.queue.use()
            loop()
            with self._lock:
                self._running -= 1
                last = not self._running
            if last:  # of the two threads: now nothing is in the air
                self._link.shut()
        except Exception as error:
            if not isinstance(error, ChannelError):
                error = ChannelError(self.peer, f"channel {self._link.name}: {why(error, self._link.timeout_s)}")
            self._finish(error.reason, Failure(self.peer, error))
            self._link.cut()

    def _finish(self, reason: str, event: Closed | Failure) -> None:
        """The peer is gone: let the out thread end, and tell the worker unless it knows."""
        with self._lock:
            known, self._over = self._over or (self._closing and isinstance(event, Closed)), True
        self._out.put(None)
        self._stop(reason)
        if not known and self._inbox is not None:
            self._inbox.put(event)

    def _stop(self, reason: str) -> None:
        """Refuse work from now on."""


class GroupSender(_End, Sender):
    """Made by `Link.sender`."""

    def __init__(self, link: Link, inbox: Inbox | None, credits: int, check: Callable[[], None] | None):
        self._credits, self._count, self._room = Credits(link.peer, credits), credits, link.room
        self._buffers = Buffers(link.device.pinned, link.room) if link.host else Buffers(link.memory)
        self._check = check
        # Packing megabytes would hold the worker from its next pass.
        self._apart = not link.device.immediate or link.room > LARGE
        self._under_way: deque[tuple[list[Callable[[], None]], Tensor]] = deque()
        self._sending = threading.Lock()
        super().__init__(link, inbox)

    def send(self, message: Message) -> None:
        header, device = channels.header_of(message), self._link.device
        computed = device.mark() if message.tensors else None
        self._credits.take(self._link.timeout_s)
        if self._apart:
            self._out.put(partial(self._begin, header, message, computed))
            return
        try:
            with self._sending:
                self._begin(header, message, computed)
        except torch.AcceleratorError:
            raise  # this process's own device, and not the peer's end
        except RuntimeError as error:
            raise ChannelError(self.peer, f"channel {self._link.name}: {why(error, self._link.timeout_s)}") from error

    def close(self) -> None:
        self._stop("this end of the channel is closed")
        super().close()

    def _begin(self, header: Tensor, message: Message, computed: Mark | None) -> None:
        """Begin to transfer a message, in the thread that sends it or in the out thread."""
        link = self._link
        self._settle(AHEAD - 1)
        length = HEADER_BYTES + body_bytes(header)
        memory = self._buffers.take(length)
        body = memory[HEADER_BYTES:length]
        if computed is None:
            pack_body(message, body)
        else:
            link.device.follow(computed, *message.tensors.values())
            pack_body(message, body)
            link.device.mark().wait()
        # Not before the tensors are there: what has gone wrong while they were computed, and how long that took, is
        # known only now.
        if self._check is not None:
            self._check()
        if message.spans:
            header = pack_header(message.settle())
        if link.host:
            memory[:HEADER_BYTES] = header
            header = memory[:HEADER_BYTES]
        within = link.host and length <= self._room
        ends = [link.begin(memory[:length] if within else header, FRAME)]
        if not within and length > HEADER_BYTES:
            ends.append(link.begin(body, BODY))
            self._room = length
        self._under_way.append((ends, memory))

    def _settle(self, left: int) -> None:
        """Wait until no more than so many transfers are under way."""
        while len(self._under_way) > left:
            ends, memory = self._under_way.popleft()
            for end in ends:
                end()
            self._buffers.give(memory)

    def _stop(self, reason: str) -> None:
        self._credits.stop(reason)

    def _beat(self) -> None:
        asked, heard, said = self._link.offset.stamp()
        # The receiver learns from beats how many credits there are.
        beat = Message("beat", chunk=self._count, moments={"asked": asked, "heard": heard, "said": said})
        self._link.send(pack_header(beat), FRAME)

    def _end(self) -> None:
        with self._sending:
            self._settle(0)  # what shuts the link finds nothing in the air
        self._link.send(END_HEADER, FRAME)

    def _receive_all(self) -> None:
        credit = torch.empty(4, dtype=torch.float64)
        while True:
            self._link.receive(credit, CREDIT)
            came, (count, *stamp) = self._link.clock(), credit.tolist()
            if count == END:
                break
            self._link.offset.hear(tuple(stamp), came)
            for _ in range(int(count)):
                self._credits.give()
            if count == BEAT:
                self._out.put(self._beat)
        self._finish("has closed the channel", Closed(self.peer))


class GroupReceiver(_End, Receiver):
    """Made by `Link.receiver`."""

    def __init__(self, link: Link, inbox: Inbox):
        self._batch, self._released, self._room = 1, 0, link.room
        # On the processor messages are read where they came, for as long as they are read.
        self._frames = Leases(link.room) if link.device.immediate else Buffers(link.device.pinned, link.room)
        self._bodies = Buffers(link.memory)
        self._read: tuple[Tensor, ...] = ()
        """Buffers of messages that were released and not told yet."""
        super().__init__(link, inbox)

    def close(self) -> None:
        self._over = True  # what still comes is dropped
        super().close()

    def _beat(self) -> None:
        self._credit(BEAT)

    def _end(self) -> None:
        self._credit(END)

    def _credit(self, count: int) -> None:
        self._link.send(torch.tensor([count, *self._link.offset.stamp()], dtype=torch.float64), CREDIT)

    def _return(self, count: int, used: tuple[Tensor, ...], read: Mark | None) -> None:
        """On the out thread: give back credits, and memory once its last reader is done."""
        if read is not None:
            read.wait()
        for buffer in used:
            self._bodies.give(buffer)
        self._credit(count)

    def _receive_all(self) -> None:
        frame, ended = self._expect()
        while True:
            ended()
            came, header = self._link.clock(), frame[:HEADER_BYTES]
            if not header[0]:
                break
            size = body_bytes(header)
            within = 0 < size <= self._room - HEADER_BYTES
            apart = self._receive_body(size) if size and not within else None
            # Posted before this message is looked at: the next one may be on its way.
            following = self._expect()
            body = self._placed(frame[HEADER_BYTES:] if within else apart, size)
            message = unpack(header, body)
            if message.kind != "beat":
                self._deliver(message, None if self._link.device.immediate else body)
            else:
                self._batch = max(1, message.chunk // SHARE)
                self._link.offset.hear(tuple(message.moments.values()), came)
            if not self._link.device.immediate:
                for memory in (frame, None if apart is body else apart):
                    self._frames.give(memory)
            del header, apart, body, message  # or this thread would keep their memory until the next one comes
            frame, ended = following
        self._finish("", Closed(self.peer))

    def _expect(self) -> tuple[Tensor, Callable[[], None]]:
        """Post the receive of the next frame; gloo lets it be shorter than there is room for."""
        frame = self._frames.take(self._room)
        return frame, self._link.post(frame[: self._room], FRAME)

    def _receive_body(self, size: int) -> Tensor:
        buffer = (self._frames if self._link.host else self._bodies).take(size)
        self._link.receive(buffer[:size], BODY)
        self._link.check()
        if self._link.host:
            self._room = HEADER_BYTES + size
        return buffer

    def _placed(self, body: Tensor | None, size: int) -> Tensor | None:
        """What was received, where it is to be read: on the device."""
        device = self._link.device
        if body is None or device.immediate or not self._link.host:
            return body
        placed = self._bodies.take(size)
        placed[:size].copy_(body[:size], non_blocking=True)
        device.mark().wait()
        return placed

    def _deliver(self, message: Message, buffer: Tensor | None) -> None:
        """`buffer`: memory of the channel's that the message borrows."""

        def release() -> None:
            used = () if buffer is None else (buffer,)
            mark = self._link.device.mark(*used)
            with self._lock:
                self._read += used
                self._released += 1
                if self._released < self._batch:
                    return
                count, read, self._released, self._read = self._released, self._read, 0, ()
            self._out.put(partial(self._return, count, read, mark))

        if not self._over:
            at = self._link.clock()
            self._link.offset.correct(message, at)
            self._inbox.put(Arrival(self.peer, message, once(release), at, borrowed=buffer is not None))


def _abandon(link: Link, out: queue.SimpleQueue, threads: list[threading.Thread]) -> None:
    """End the threads of an end that its peer does not let end."""
    if any(thread.is_alive() for thread in threads):
        out.put(None)
        link.cut()
        for thread in threads:
            thread.join(1.0)
