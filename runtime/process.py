"""One worker: load, meet the others, run, and say how it went. The same as a process under torchrun or Ray, and as a
thread of one process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
import torch.distributed as dist

import devices
from conf.schema import Config
from parallel.channels import ChannelError, Inbox, Sender
from parallel.p2p import connect_all
from parallel.plan import Plan
from parallel.transport import NCCL, Place, bodies, of_channels, refuse
from runtime.admission import most_streams
from runtime.block import Block
from runtime.board import DRIVER, Abandoned, Board, OrderReader, PeerLost
from runtime.folder import require_shared
from runtime.group import Group, join_group, run_follower
from runtime.loading import load_parts
from runtime.orders import Open
from runtime.parts import Parts
from runtime.progress import Loading
from runtime.pulse import Pulse
from runtime.reasons import Reason
from runtime.room import free_bytes, require_together, room
from runtime.saving import Saver
from runtime.trace import Trace, worker_trace
from runtime.worker import Worker

LOAD_TIMEOUT_S = 3600.0
"""Longest wait for the others to load: a cold disk may need minutes for a 14B model."""
ONE_HOST, SEVERAL_HOSTS = "one host", "several hosts"
"""What is told as `begun`: where a run's processes may be."""
OWN = "own"
"""The key under which a run tells how many of the first orders are its own."""
MARKS = 2
"""Marks of one stream that may be under way: a state's and the end's."""
LOST = PeerLost.__name__
"""The kind of reason that says who was lost."""


class Ends(NamedTuple):
    """A process's connections.

    Attributes:
        senders: its worker's, by peer.
        group: those who share its passes.
        close: closes everything.
        clocks: by peer, seconds to be added to a moment of its clock, to have it by this process's.
    """

    senders: dict[int, Sender]
    group: Group
    close: Callable[[], None]
    clocks: Callable[[], dict[int, float]] = dict


class Connect(Protocol):
    """Makes a process's connections."""

    def __call__(self, inbox: Inbox, device: torch.device) -> Ends:
        """Those of the process whose inbox this is; messages live on `device`."""
        ...


def credits(plan: Plan, config: Config) -> int:
    """Messages a channel may hold: as many as there can be, so that no worker waits for another to take them in."""
    return plan.credits(most_streams(config), MARKS)


def over_network(plan: Plan, index: int, config: Config, store: dist.Store) -> Connect:
    """Connections of process `index` to others, which meet on `store`."""
    worker, patience, transport = plan.members[index].worker, config.launcher.timeout_s, config.launcher.transport
    # Channels are the worker's; who only shares its passes has none.
    mine = [pair for pair in plan.channels if worker in pair and plan.members[index].leads]

    def connect(inbox: Inbox, device: torch.device) -> Ends:
        group = join_group(plan, index, store, device, inbox, patience, transport)
        peers = {f"{a:04d}-{b:04d}": (b if a == worker else a) for a, b in mine}
        expected = {f"{a:04d}-{b:04d}": size for (a, b), size in bodies(plan).items() if (a, b) in mine}
        senders, receivers = {}, []
        for name, link in connect_all(
            store, worker, peers, device, patience, expected, transport=of_channels(plan, transport)
        ).items():
            if int(name[:4]) == worker:
                check = group.exchange.check if group.exchange else None
                senders[link.peer] = link.sender(inbox, credits(plan, config), check=check)
            else:
                receivers.append(link.receiver(inbox))

        def close() -> None:
            for end in (group, *senders.values(), *receivers):
                end.close()

        def clocks() -> dict[int, float]:
            return {end.peer: end.offset for end in (*senders.values(), *receivers)}

        return Ends(senders, group, close, clocks)

    return connect


def run_worker(
    plan: Plan,
    index: int,
    config: Config,
    board: Board,
    folder: Path,
    connect: Connect,
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    inbox: Inbox | None = None,
    node: int | str = 0,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Be process `index` of a plan until the pipeline is closed and every stream has ended; says on the board how it
    went: `left/INDEX` is this process's part of the report, or False, and `failed` what failed first in the run.

    Args:
        plan, index, config: the run, and who this is.
        board: shared by all processes; orders come from it.
        folder: for results; made by whoever started the run, once all workers have loaded.
        connect: makes this process's channels.
        device: None: as the configuration says.
        stdin: where live sources read; None: standard input.
        inbox: of this worker; None: a new one.
        node: the machine that this is, for the report.
        first: called before anything is loaded; what it raises is this process's failure.

    Raises:
        Abandoned: another process failed before this one did.
        Exception: what went wrong here, and was the first in the run to do so.
    """
    member, left, pulse = plan.members[index], False, Pulse(board, config.launcher.timeout_s)
    pulse.start()
    try:
        inbox = Inbox() if inbox is None else inbox
        job = Job(plan, index, config, board, folder, inbox, OrderReader(board, inbox), pulse)
        first()
        job.agree(device)
        parts = job.load(device, stdin)
        job.meet()
        left = job.run(parts, connect) | {"node": node}
    except Exception as error:
        reason = _reason(error, f"worker {member}, {pulse.look().at}")
        with suppress(RuntimeError):  # the store is gone: nobody else is there to have failed first
            first = board.first("failed", {"process": index} | reason.to_dict())
            if first["process"] != index:
                raise Abandoned(first["line"]) from error
        if isinstance(error, ChannelError):
            raise PeerLost(str(error)) from error
        raise
    finally:
        pulse.close()
        with suppress(RuntimeError):
            board.tell(f"left/{index}", left)


def _reason(error: Exception, where: str) -> Reason:
    """Why a process ends. Who was lost is told in its line, not by a traceback."""
    return Reason(str(error), LOST, where) if isinstance(error, PeerLost | ChannelError) else Reason.of(error, where)


def share_folder(board: Board, config: Config) -> None:
    """Refuse an output folder that not all processes of a run see, the launcher (who has made it) included.

    Raises:
        UserError: a process is on a host that does not share it.
    """
    members = range(DRIVER, board.workers)
    require_shared(board, Path(config.output_dir), members, board.index == DRIVER, config.launcher.timeout_s)


class Job(NamedTuple):
    """What a process of a plan has to do; the arguments are `run_worker`'s."""

    plan: Plan
    index: int
    config: Config
    board: Board
    folder: Path
    inbox: Inbox
    orders: OrderReader
    pulse: Pulse

    def agree(self, device: torch.device | None) -> None:
        """Find out before anything loads whether tensors can go as they are asked to.

        Raises:
            UserError: two processes cannot exchange them by NCCL, and that was asked for.
        """
        if self.config.launcher.transport != NCCL:
            return
        own = devices.of(devices.choose(self.config.device.kind) if device is None else device)
        self.board.tell(f"place/{self.index}", Place.of(own))
        places = []
        for process in range(self.plan.processes):
            self.board.wait(f"place/{process}", self.config.launcher.timeout_s)
            places.append(Place(*self.board.told(f"place/{process}")))
        refuse(self.plan, places)

    def load(self, device: torch.device | None, stdin: BinaryIO | None) -> Parts:
        """Load what this process holds. Between two parts it looks whether that is still wanted.

        Raises:
            Abandoned: another process failed meanwhile, or the run was given up.
            UserError: what was to be loaded or opened cannot be used.
        """

        def told(loading: Loading) -> None:
            if failed := self.board.told("failed"):
                raise Abandoned(failed["line"])
            self.pulse.at(loading)

        # The run's own streams are looked at before weights load. One that came later costs nobody else anything.
        own = self.board.told(OWN) or 0
        known = [order for order in self.orders.orders() if isinstance(order, Open) and order.number < own]
        member = self.plan.members[self.index]
        self._claim(devices.choose(self.config.device.kind) if device is None else device)
        parts = load_parts(self.plan, member.worker, self.config, known, device, stdin, Loading(told), member.leads)
        if member.leads:
            self.board.tell(f"room/{member.worker}", room(parts))
        self.pulse.at("waiting for the others to load")
        return parts

    def _claim(self, device: torch.device) -> None:
        """Tell what this process is going to hold, and look at what others told who use the same memory.

        What is free there was told by whoever looked first, before anything was loaded.

        Raises:
            UserError: together they hold more than is free.
        """
        if self.config.device.kind == "emulated":
            return
        member = self.plan.members[self.index]
        memory, free = free_bytes(device)
        self.board.tell(
            f"holds/{self.index}",
            {"memory": memory, "free": free, "bytes": self.plan.weight_bytes(member.worker, member.rank)},
        )
        told = [self.board.told(f"holds/{process}") for process in range(self.plan.processes)]
        require_together(self.config, [one for one in told if one and one["memory"] == memory])

    def meet(self) -> None:
        """Wait until all have loaded and the output folder has been made.

        Raises:
            UserError: that folder is not everybody's.
        """
        self.board.tell(f"loaded/{self.index}")
        self.board.wait("begun", LOAD_TIMEOUT_S)
        if self.board.told("begun") == SEVERAL_HOSTS:
            share_folder(self.board, self.config)
        # What was loaded stays: the collector need not look at it again, in the middle of a chunk.
        gc.collect()
        gc.freeze()

    def run(self, parts: Parts, connect: Connect) -> dict[str, Any]:
        """Connect with the others and work; returns this process's part of the report."""
        self.pulse.at("connecting")
        member = self.plan.members[self.index]
        try:
            ends = connect(self.inbox, parts.device)
            ends.group.share(parts.denoisers)
            blocks = parts.blocks(self.plan, member.worker)
            with worker_trace(self.folder, self.index, str(member), self.config.sink.trace) as trace:
                report = self._work(ends, parts, blocks, trace)
            for packed in report["traces"]:
                packed.update(of=member.worker, clocks=ends.clocks())
            self.pulse.at("closing")
            ends.close()
            parts.queue.close()
            return report
        finally:
            self.orders.close()

    def _work(self, ends: Ends, parts: Parts, blocks: dict[int, Block], trace: Trace) -> dict[str, Any]:
        """Be the worker, or one of those who share its passes."""
        member = self.plan.members[self.index]
        if member.rank:
            self.pulse.at("following")
            saver = Saver(self.board, parts.queue.device, self.config.launcher.cuts)
            saver.start()
            for block in blocks.values():
                block.use(saver)
            try:
                return run_follower(ends.group, parts, blocks, self.inbox, trace)
            finally:
                saver.close()
        self.orders.start()
        blocks = ends.group.lead(blocks)
        worker = Worker(
            self.plan, member.worker, self.config, parts, blocks, ends.senders, self.inbox, trace, self.board
        )
        self.pulse.look = worker.look
        return worker.run()
