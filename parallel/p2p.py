"""Channels between processes, over torch.distributed point-to-point: gloo on CPU, NCCL for bodies on CUDA.

Every channel has a two-member process group of its own, so a dead peer takes no other channel down. Three kinds of
transfer share it, told apart by their tag:

    sender -> receiver   frame    uint8, host: a header (a message, a beat, or all zeros: the end) and the body if there
                                  is *room* for it; its receive is posted ahead, for the longest frame there may be
    sender -> receiver   body     uint8, the device's: one there was no room for; its receive is posted only then
    receiver -> sender   credit   [1] int64, host: how many messages were released, 0 a beat, -1 the end

Between hosts' memories there is room from the start for what the plan expects, and a body that found none makes room
for all that follow, at both ends: then a message is one transfer. With dozens of workers on a machine the wake-ups of
threads cost more than copies do, so there the worker's own thread begins the transfer, too. On CUDA bodies always
travel by themselves.

Each end runs two daemon threads, one out and one in, because a gloo transfer cannot be polled. An idle out thread
sends beats; an in thread that hears nothing for `timeout_s`, or sees the connection closed, breaks the channel and
reports it once. Backpressure is the credits alone: in threads always keep reading, so a peer that computes for long
is not mistaken for a dead one. (A peer whose Python cannot run, stopped or in C code that keeps the GIL, is.)

Closing: the sender sends its end after all messages and the receiver answers with its own, or the other way round.
An end that has sent one and heard one is done, and nothing is in the air when the sockets close.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import channels
from parallel.address import gloo_device
from parallel.buffers import Buffers, Leases
from parallel.channels import Arrival, ChannelError, Closed, Credits, Failure, Inbox, Peer, Receiver, Sender, once
from parallel.edges import Edges
from parallel.message import HEADER_BYTES, Message, body_bytes, pack_body, pack_header, unpack

FRAME, BODY, CREDIT, CUT = range(4)  # tags
BEAT, END = 0, -1  # credits
END_HEADER = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
# Beats of an idle end per timeout.
BEATS = 4
# Frames that may still be on their way when the next one is begun.
AHEAD = 2
# Bytes beside an expected body: of sound, actions and whatever else is small and goes along.
SMALL = 1 << 16
# Credits go back when this part of them has been released: every transfer wakes four threads.
SHARE = 4
# Longest wait of close() for a peer that answers nothing; in good order it takes milliseconds.
CLOSE_S = 5.0


class Link:
    """The connected pair behind one channel, made by `connect`.

    Each member makes one end of it, soon after connecting: until then the other hears nothing from it.
    """

    def __init__(
        self,
        peer: Peer,
        name: str,
        rank: int,
        store: dist.Store,
        device: torch.device,
        timeout_s: float,
        expected: int = 0,
    ):
        self.peer, self.name, self.timeout_s, self.device = peer, name, timeout_s, device
        self.edges = Edges(device)
        self._other, self._timeout = 1 - rank, timedelta(seconds=timeout_s)
        options = dist.ProcessGroupGloo._Options()
        options._devices = [gloo_device(store)]
        options._threads = 1  # they serve collectives, of which there are none
        options._timeout = self._timeout
        self._group = self._bodies = dist.ProcessGroupGloo(store, rank, 2, options)
        self.room = HEADER_BYTES
        if device.type != "cuda":
            self.room += expected + SMALL * bool(expected)
        else:
            # Its watchdog ends the process, so it comes last: the beats notice first, and `cut` aborts the transfer.
            limit = 3 * self._timeout
            self._bodies = dist.ProcessGroupNCCL(dist.PrefixStore("bodies", store), rank, 2, limit)
            # The first transfers make the communicator and need the store; afterwards nothing does.
            for transfer in ((self.send, self.receive), (self.receive, self.send))[rank]:
                with self.edges.after(None):
                    transfer(torch.zeros(64, dtype=torch.uint8, device=device), BODY)

    def sender(self, inbox: Inbox | None = None, credits: int = channels.CREDITS) -> Sender:
        """The sending end. With an inbox the peer's failure or close is put there too, not only raised by `send`."""
        return _GroupSender(self, inbox, credits)

    def receiver(self, inbox: Inbox) -> Receiver:
        """The receiving end; what comes is put into the inbox."""
        return _GroupReceiver(self, inbox)

    def send(self, tensor: Tensor, tag: int) -> None:
        """Send a contiguous tensor; done on return (gloo) or in the order of the current stream (NCCL)."""
        self.wait(self.begin(tensor, tag), tag)

    def begin(self, tensor: Tensor, tag: int) -> dist.Work:
        """Begin to send a contiguous tensor, which must stay as it is until the work was waited for."""
        group = self._bodies if tag == BODY else self._group
        return group.send([tensor], self._other, tag)

    def receive(self, tensor: Tensor, tag: int) -> None:
        """Receive into a contiguous tensor; done on return (gloo) or in the order of the current stream (NCCL)."""
        self.wait(self.post(tensor, tag), tag)

    def post(self, tensor: Tensor, tag: int) -> dist.Work:
        """Begin to receive into a contiguous tensor."""
        group = self._bodies if tag == BODY else self._group
        return group.recv([tensor], self._other, tag)

    def wait(self, work: dist.Work, tag: int) -> None:
        """Wait for a transfer. Raises RuntimeError if it did not end in time or the connection closed."""
        if tag == BODY and not self.host:
            work.wait()  # given a time, NCCL would block the host
        else:
            work.wait(self._timeout)

    @property
    def host(self) -> bool:
        """Whether bodies travel between hosts' memories."""
        return self._bodies is self._group

    def cut(self) -> None:
        """Break the pair: whatever waits on it, in any thread and at the peer, fails now."""
        # gloo's abort() wakes nobody, but a wait that runs out of time closes the pair.
        with suppress(RuntimeError):
            self._group.recv([torch.empty(1)], self._other, CUT).wait(timedelta(milliseconds=1))
        if not self.host:
            self._bodies.abort()


def connect(
    store: dist.Store,
    me: int,
    peer: int,
    name: str,
    device: torch.device | str,
    timeout_s: float,
    expected: int = 0,
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

    Raises:
        ChannelError: the peer did not come in time, or the store is gone.
        ValueError: `me` is `peer`.
    """
    if me == peer:
        raise ValueError(f"channel {name}: worker {me} talks to itself; use a LocalChannel")
    return link(store, int(me > peer), peer, name, torch.device(device), timeout_s, expected)


def link(
    store: dist.Store, side: int, peer: Peer, name: str, device: torch.device, timeout_s: float, expected: int = 0
) -> Link:
    """One side, 0 or 1, of a new pair; the rest is as for `connect`."""
    try:
        return Link(peer, name, side, dist.PrefixStore(name, store), device, timeout_s, expected)
    except RuntimeError as error:
        raise ChannelError(peer, f"channel {name} not connected in {timeout_s:g} s ({_line(error)})") from error


def connect_all(
    store: dist.Store,
    me: int,
    peers: Mapping[str, int],
    device: torch.device | str,
    timeout_s: float,
    expected: Mapping[str, int] | None = None,
) -> dict[str, Link]:
    """`connect` all channels of a worker, given as name -> peer, in the order that cannot deadlock.

    Args:
        expected: per channel, as for `connect`.
    """
    bodies = expected or {}
    return {
        name: connect(store, me, peers[name], name, device, timeout_s, bodies.get(name, 0)) for name in sorted(peers)
    }


class _End:
    """What both ends share: threads, beats, the one report of a failure, and the close."""

    def __init__(self, link: Link, inbox: Inbox | None, beat: tuple, last: tuple[Tensor, int]):
        self.peer, self._link, self._inbox = link.peer, link, inbox
        self._beat, self._last = beat, last  # what to transmit when idle; the end: tensor and tag
        self._out: queue.SimpleQueue = queue.SimpleQueue()  # what to transmit; None: the end
        self._lock = threading.Lock()
        self._over = False  # ended, or broken and reported: what happens later is a consequence
        self._closing = False
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=f"{link.name} {loop.__name__}", daemon=True)
            for loop in (self._send_all, self._receive_all)
        ]
        for thread in self._threads:
            thread.start()
        # A daemon thread that returns from C++ into a dying interpreter may abort the process: end it before.
        weakref.finalize(self, _abandon, link, self._out, self._threads)

    def close(self) -> None:
        self._closing = True
        self._out.put(None)
        deadline = time.monotonic() + min(CLOSE_S, self._link.timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        _abandon(self._link, self._out, self._threads)

    def _send_all(self) -> None:
        item = self._beat
        while item is not None:
            self._transmit(*item)
            try:
                item = self._out.get(timeout=self._link.timeout_s / BEATS)
            except queue.Empty:
                item = self._beat
        self._link.send(*self._last)
        self._over = True

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
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


class _GroupSender(_End, Sender):
    def __init__(self, link: Link, inbox: Inbox | None, credits: int):
        self._credits, self._room = Credits(link.peer, credits), link.room
        self._buffers = Buffers(link.device, link.room if link.host else 0)
        self._under_way: deque[tuple[list[dist.Work], Tensor]] = deque()
        # The receiver learns from the first beat how many credits there are.
        beat = pack_header(Message("beat", chunk=credits))
        super().__init__(link, inbox, (beat, None, None), (END_HEADER, FRAME))

    def send(self, message: Message) -> None:
        header = channels.header_of(message)
        self._credits.take(self._link.timeout_s)
        if not self._link.host:
            self._out.put((header, message, self._link.edges.mark()))
            return
        try:
            self._begin(header, message)
        except RuntimeError as error:
            raise ChannelError(self.peer, f"channel {self._link.name}: {why(error, self._link.timeout_s)}") from error

    def close(self) -> None:
        self._stop("this end of the channel is closed")
        super().close()
        with suppress(RuntimeError):
            self._settle(0)

    def _begin(self, header: Tensor, message: Message) -> None:
        """Begin to transfer a message, in the worker's own thread."""
        self._settle(AHEAD - 1)
        length = HEADER_BYTES + body_bytes(header)
        frame = self._buffers.take(length)
        frame[:HEADER_BYTES] = header
        pack_body(message, frame[HEADER_BYTES:])
        if length <= self._room:
            works = [self._link.begin(frame[:length], FRAME)]
        else:
            body = frame[HEADER_BYTES:length]
            works = [self._link.begin(frame[:HEADER_BYTES], FRAME), self._link.begin(body, BODY)]
            self._room = length
        self._under_way.append((works, frame))

    def _settle(self, left: int) -> None:
        """Wait until no more than so many transfers are under way."""
        while len(self._under_way) > left:
            works, frame = self._under_way.popleft()
            for work in works:
                self._link.wait(work, FRAME)
            self._buffers.give(frame)

    def _stop(self, reason: str) -> None:
        self._credits.stop(reason)

    def _transmit(self, header: Tensor, message: Message | None, computed: torch.cuda.Event | None) -> None:
        """On the out thread: beats, and on CUDA all messages."""
        if message is None or not message.tensors:
            self._link.send(header, FRAME)
            return
        buffer = self._buffers.take(body_bytes(header))
        with self._link.edges.after(computed, buffer, *message.tensors.values()):
            # Packed here, and not on the worker's thread, which has the next pass to begin.
            body = pack_body(message, buffer)
            announced = self._link.begin(header, FRAME)
            self._link.send(body, BODY)
            self._link.wait(announced, FRAME)
        self._buffers.give(buffer)

    def _receive_all(self) -> None:
        credit = torch.tensor([BEAT])
        while (count := int(credit.item())) != END:
            for _ in range(count):
                self._credits.give()
            self._link.receive(credit, CREDIT)
        self._finish("has closed the channel", Closed(self.peer))


class _GroupReceiver(_End, Receiver):
    def __init__(self, link: Link, inbox: Inbox):
        self._batch, self._released, self._room = 1, 0, link.room
        self._frames, self._bodies = Leases(link.room), Buffers(link.device)
        self._read: tuple[Tensor, ...] = ()
        """Buffers of messages that were released and not told yet."""
        super().__init__(link, inbox, (BEAT, (), None), (torch.tensor([END]), CREDIT))

    def close(self) -> None:
        self._over = True  # what still comes is dropped
        super().close()

    def _transmit(self, count: int, used: tuple[Tensor, ...], read: torch.cuda.Event | None) -> None:
        if used:
            with self._link.edges.after(read):
                for buffer in used:
                    self._bodies.give(buffer)
        self._link.send(torch.tensor([count]), CREDIT)

    def _receive_all(self) -> None:
        frame, work = self._expect()
        while True:
            self._link.wait(work, FRAME)
            header = frame[:HEADER_BYTES]
            if not header[0]:
                break
            size = body_bytes(header)
            within = 0 < size <= self._room - HEADER_BYTES
            body = frame[HEADER_BYTES:] if within else self._receive_body(size)
            # Posted before this message is looked at: the next one may be on its way.
            following = self._expect()
            message = unpack(header, body)
            if message.kind != "beat":
                self._deliver(message, None if self._link.host else body)
            else:
                self._batch = max(1, message.chunk // SHARE)
            del header, body, message  # or this thread would keep their memory until the next one comes
            frame, work = following
        self._finish("", Closed(self.peer))

    def _expect(self) -> tuple[Tensor, dist.Work]:
        """Post the receive of the next frame; gloo lets it be shorter than there is room for."""
        frame = self._frames.take(self._room)
        return frame, self._link.post(frame[: self._room], FRAME)

    def _receive_body(self, size: int) -> Tensor | None:
        if not size:
            return None
        with self._link.edges.after(None):
            buffer = (self._frames if self._link.host else self._bodies).take(size)
            self._link.receive(buffer[:size], BODY)
        if self._link.host:
            self._room = HEADER_BYTES + size
        return buffer

    def _deliver(self, message: Message, buffer: Tensor | None) -> None:
        """`buffer`: memory of the channel's that the message borrows."""

        def release() -> None:
            used = () if buffer is None else (buffer,)
            mark = self._link.edges.mark(*used)
            with self._lock:
                self._read += used
                self._released += 1
                if self._released < self._batch:
                    return
                count, used, self._released, self._read = self._released, self._read, 0, ()
            self._out.put((count, used, mark))

        if not self._over:
            self._inbox.put(Arrival(self.peer, message, once(release), borrowed=buffer is not None))


def _abandon(link: Link, out: queue.SimpleQueue, threads: list[threading.Thread]) -> None:
    """End the threads of an end that its peer does not let end."""
    if any(thread.is_alive() for thread in threads):
        out.put(None)
        link.cut()
        for thread in threads:
            thread.join(1.0)


def why(error: Exception, timeout_s: float) -> str:
    """What a transfer's error means, in a few words."""
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return f"no sign of life for {timeout_s:g} s"
    if any(word in text for word in ("closed by peer", "reset by peer", "broken pipe")):
        return "the connection is closed: the process died or gave up"
    return _line(error)


def _line(error: Exception) -> str:
    """An error of the library in one line, without the place in its sources."""
    text = " ".join(str(error).split()).split("] ", 1)[-1]
    return f"{type(error).__name__}: {text[:200]}"
