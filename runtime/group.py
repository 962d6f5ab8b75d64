"""The processes of one worker that share its passes: the first is the worker, the others do as it does.

The first, the leader, tells the others of every call that changes its blocks, and then makes the call itself; the
others, followers, make the same calls on blocks of their own in the same order, so all blocks go through the same
states: streams and texts come and go everywhere alike. Within a pass tokens and heads are exchanged
(`stages.denoise.share`), and the result is gathered on the leader. Nothing else of the worker knows.

That there is a call, and what its tensors look like, goes over a channel between the hosts' memories. The tensors are
broadcast by the group's exchange: devices have one order of transfers then, so none waits for what is behind it.

Channels beat, so whoever dies is noticed while nothing happens, too: as a `Failure` in the inbox.
"""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import devices
from parallel.channels import Arrival, ChannelError, Closed, Event, Failure, Receiver, Sender
from parallel.exchange import Exchange, GroupExchange, local_group
from parallel.local import LocalChannel
from parallel.message import HEADER_BYTES, Message, body_bytes, pack, unpack
from parallel.p2p import link
from parallel.passes import PASSES, ROWS
from parallel.plan import Member, Plan
from runtime.block import Block
from runtime.board import PeerLost
from runtime.parts import Parts
from runtime.report import worker_report
from runtime.trace import Trace
from stages.denoise.denoiser import Denoiser
from stages.denoise.share import Ulysses

CALLS = ("open", "close", "set_states", "step", *PASSES.on(ROWS), "cut", "restore")
"""What changes a block, or needs all members. All that is asked of it besides, followers need not hear."""

HOST = torch.device("cpu")
"""Where calls are told; the exchange has the tensors."""

log = logging.getLogger(__name__)

CALL, HEADER = "call", "header"
"""The kind of a call's message, and of the one that tells of it: its tensor is the header of the first."""
CREDITS = 4
"""Calls a follower may be behind by: they end in an exchange, so it is never far."""


class Alarm:
    """An inbox that first wakes whoever waits for a lost member."""

    def __init__(self, inbox: queue.SimpleQueue, exchange: Exchange):
        self._inbox, self._exchange = inbox, exchange

    def put(self, event: Event) -> None:
        if isinstance(event, Failure):
            self._exchange.abort()
        self._inbox.put(event)


@dataclass
class Group:
    """One member's connections to the others of its worker.

    Attributes:
        member: who this is.
        exchange: of tokens and heads; None where the worker is one process.
        senders: to every follower, on the leader.
        receiver: from the leader, on a follower; what comes is in the inbox that the group was made with.
    """

    member: Member
    exchange: Exchange | None = None
    senders: list[Sender] = field(default_factory=list)
    receiver: Receiver | None = None

    def share(self, denoisers: Mapping[int, Denoiser]) -> None:
        """Make these denoisers compute this member's part; before any stream is opened."""
        if self.exchange is not None:
            for denoiser in denoisers.values():
                denoiser.share = Ulysses(self.exchange)

    def lead(self, blocks: Mapping[int, Block]) -> dict[int, Block]:
        """A worker's blocks, as it is to use them: what is done to them, followers do too."""
        if not self.senders:
            return dict(blocks)
        return {number: Lead(number, block, self.senders, self.exchange) for number, block in blocks.items()}

    def follow(self, blocks: Mapping[int, Block], inbox: queue.SimpleQueue, trace: Trace) -> None:
        """Do as the leader does, until it says that this is the end.

        Raises:
            PeerLost: the leader, or another follower, is gone or silent.
        """
        while True:
            start = trace.clock()
            item = inbox.get()  # without a time: a leader that dies or stops beating is an event, too
            trace.add("wait", -1, start, trace.clock() - start)
            if isinstance(item, Failure):
                raise self._lost(item.error)
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Closed):
                raise PeerLost(f"worker {item.peer} has given up; worker {self.member} was following it")
            if item.message.kind == "end":
                return item.release()
            method = ""
            try:
                number, method, args = take_call(item, blocks, self.exchange)
                with trace.span(method, -1):
                    getattr(blocks[number], method)(*args)
            except ChannelError as error:
                raise self._lost(error) from error
            except torch.AcceleratorError:
                raise  # the device does nothing more
            except Exception:
                # What fails here fails on the leader, too, and ends the stream there. Where it does not, the exchange
                # of this pass is never finished, and the leader tells that this process is silent.
                log.exception("worker %s: %s failed", self.member, method)

    def abort(self) -> None:
        """Wake whoever waits in an exchange: this member, or a thread beside it, has failed."""
        if self.exchange is not None:
            self.exchange.abort()

    def cut(self) -> None:
        """Break every connection: whoever waits there goes on with a failure."""
        self.abort()
        for end in (*self.senders, *([self.receiver] if self.receiver else [])):
            end.cut()

    def close(self) -> None:
        """Tell the followers that this is the end, or take nothing more from the leader.

        A leader that fails does not come here: its channels close, and followers know what that means.
        """
        for sender in self.senders:
            sender.send(Message("end"))
        for sender in self.senders:
            sender.close()
        if self.receiver is not None:
            self.receiver.close()
        if self.exchange is not None:
            self.exchange.close()

    def _lost(self, error: ChannelError) -> PeerLost:
        return PeerLost(f"worker {error.peer} is lost ({error.reason}); worker {self.member} was following it")


class Lead:
    """A block with followers: has the block's face, and says what is done to it before doing it, in one thread.

    Calls raise ChannelError if a follower is gone or silent.
    """

    def __init__(self, number: int, block: Block, senders: Sequence[Sender], exchange: Exchange):
        self._number, self._block, self._senders, self._exchange = number, block, senders, exchange

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._block, name)
        if name not in CALLS:
            return found

        def call(*args: Any) -> Any:
            made = call_of(self._number, name, args, self._block.denoiser.network.device)
            header, body = pack(made)
            for sender in self._senders:
                sender.send(Message(CALL, tensors={HEADER: header}))
            if body is not None:
                self._exchange.broadcast(body)
            return found(*args)

        return call


def call_of(number: int, method: str, args: Sequence[Any], device: torch.device) -> Message:
    """A call of a block's method: numbers in the note, tensors (and dictionaries of them) in the body, on `device`."""
    tensors: dict[str, Tensor] = {}

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = devices.of(device).upload(value)
            return {"tensor": name}
        if isinstance(value, dict):
            return {"tensors": {name: place(tensor) for name, tensor in value.items()}}
        return value

    note = json.dumps([method, [place(a) for a in args]])
    return Message(CALL, block=number, note=note, tensors=tensors)


def take_call(arrival: Arrival, blocks: Mapping[int, Block], exchange: Exchange) -> tuple[int, str, list[Any]]:
    """(block, method, arguments) of a call that was told; its tensors come over the exchange.

    Raises:
        ChannelError: they do not.
    """
    header, body = arrival.take().tensors[HEADER], None
    if size := body_bytes(header):
        # All processes of a worker have its blocks on devices of one kind.
        device = next(iter(blocks.values())).denoiser.network.device
        body = torch.empty(size, dtype=torch.uint8, device=device)
        exchange.broadcast(body)
    message = unpack(header, body)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return message.tensors[value["tensor"]]
        # A block keeps what was given to it for longer than what it makes of hidden states, which are most of the body.
        return {name: read(tensor).clone() for name, tensor in value["tensors"].items()}

    method, args = json.loads(message.note)
    return message.block, method, [read(a) for a in args]


def run_follower(
    group: Group, parts: Parts, blocks: Mapping[int, Block], inbox: queue.SimpleQueue, trace: Trace
) -> dict[str, Any]:
    """Be a follower until the leader ends.

    Args:
        group: this process's; it shares the denoisers of `parts`.
        parts, blocks: what this process holds.
        inbox: that the group was made with.
        trace: closed at a good end.

    Returns:
        This process's part of the report. Its passes are the leader's, and are reported there.

    Raises:
        PeerLost: the leader, or another follower, is gone or silent.
        Superseded: another generation begins.
    """
    group.follow(blocks, inbox, trace)
    trace.close()
    return worker_report(trace, parts.weight_bytes, parts.bank_bytes, parts.device) | {"stages": {}}


def join_group(
    plan: Plan,
    process: int,
    store: dist.Store,
    device: torch.device,
    inbox: queue.SimpleQueue,
    timeout_s: float,
    transport: str = "auto",
) -> Group:
    """Connect with the other processes of this one's worker; all call it at about the same time, before channels.

    Args:
        plan, process: the plan, and which of its processes this is.
        store: shared by all, used only during the call.
        device: of the network.
        inbox: where followers' calls come in, and where the loss of a member is told.
        timeout_s: longest wait for a member, here and from then on.
        transport: as `launcher.transport`.

    Raises:
        ChannelError: a member did not come in time.
    """
    member = plan.members[process]
    size = len(plan.group(member.worker))
    if size == 1:
        return Group(member)
    store = dist.PrefixStore(f"group{member.worker}", store)
    shared = dist.PrefixStore("exchange", store)
    exchange = GroupExchange(shared, member.worker, member.rank, size, device, timeout_s, transport)
    group, alarm = Group(member, exchange), Alarm(inbox, exchange)
    leads = member.leads
    for rank in range(1, size) if leads else [member.rank]:
        peer = Member(member.worker, rank if leads else 0)
        name = f"{member.worker}-{member.worker}.{rank}"
        connected = link(store, int(not leads), peer, name, HOST, timeout_s, HEADER_BYTES)
        if leads:
            group.senders.append(connected.sender(alarm, CREDITS))
        else:
            group.receiver = connected.receiver(alarm)
    return group


def local_groups(plan: Plan, inboxes: Sequence[queue.SimpleQueue], timeout_s: float) -> list[Group]:
    """The groups of all processes of a plan as threads of this one, each with its inbox."""
    groups = [Group(member) for member in plan.members]
    for worker in range(plan.workers):
        first, *others = numbers = plan.group(worker)
        if others:
            for number, exchange in zip(numbers, local_group(worker, len(numbers), timeout_s), strict=True):
                groups[number].exchange = exchange
        for number in others:
            channel = LocalChannel(first, number, inboxes[number], CREDITS, timeout_s)
            groups[first].senders.append(channel.sender)
            groups[number].receiver = channel.receiver
    return groups
