"""One worker: load, meet the others, run, and say how it went. The same as a process under torchrun or Ray, and as a
thread of one process.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
import torch.distributed as dist

from conf.errors import UserError
from conf.schema import Config
from parallel.channels import ChannelError, Inbox, Sender
from parallel.p2p import connect_all
from parallel.plan import Plan
from runtime.board import Abandoned, Board, OrderReader, PeerLost
from runtime.group import Group, join_group, run_follower
from runtime.orders import Open
from runtime.parts import load_parts
from runtime.trace import worker_trace
from runtime.worker import Worker

LOAD_TIMEOUT_S = 3600.0
"""Longest wait for the others to load: a cold disk may need minutes for a 14B model."""


class Ends(NamedTuple):
    """A process's connections: its worker's senders by peer, those who share its passes, and what closes everything."""

    senders: dict[int, Sender]
    group: Group
    close: Callable[[], None]


class Connect(Protocol):
    """Makes a process's connections."""

    def __call__(self, inbox: Inbox, device: torch.device) -> Ends:
        """Those of the process whose inbox this is; messages live on `device`."""
        ...


STREAMS = 64
"""Streams that may be open at once without a worker ever waiting for another to take in messages."""


def credits(plan: Plan, config: Config) -> int:
    """Messages a channel may hold: as many as there can be."""
    marks = 2 if config.stream.save_every_chunks or config.stream.save_on_stop else 1
    return plan.credits(max(STREAMS, config.stream.count), marks)


def over_network(plan: Plan, index: int, config: Config, store: dist.Store) -> Connect:
    """Connections of process `index` to others, which meet on `store`."""
    worker, patience = plan.members[index].worker, config.launcher.timeout_s
    # Channels are the worker's; who only shares its passes has none.
    mine = [pair for pair in plan.channels if worker in pair and plan.members[index].rank == 0]

    def connect(inbox: Inbox, device: torch.device) -> Ends:
        group = join_group(plan, index, store, device, inbox, patience)
        peers = {f"{a:04d}-{b:04d}": (b if a == worker else a) for a, b in mine}
        expected = {f"{a:04d}-{b:04d}": max(h.bytes for h in plan.hops if h[:2] == (a, b)) for a, b in mine}
        senders, receivers = {}, []
        for name, link in connect_all(store, worker, peers, device, patience, expected).items():
            if int(name[:4]) == worker:
                senders[link.peer] = link.sender(inbox, credits(plan, config))
            else:
                receivers.append(link.receiver(inbox))

        def close() -> None:
            for end in (group, *senders.values(), *receivers):
                end.close()

        return Ends(senders, group, close)

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
    begin: Callable[[], None] | None = None,
    inbox: Inbox | None = None,
) -> dict[str, Any]:
    """Be process `index` of a plan until the pipeline is closed and every stream has ended.

    Args:
        plan, index, config: the run, and who this is.
        board: shared by all processes; orders come from it.
        folder: for results.
        connect: makes this process's channels.
        device: None: as the configuration says.
        stdin: where live sources read; None: standard input.
        begin: makes the output folder; called once all workers have loaded, and given to one worker of the run, unless
            the launcher does it.
        inbox: of this worker; None: a new one.

    Returns:
        This process's part of the report.

    Raises:
        UserError: what this worker was to load or open cannot be used.
        PeerLost: a worker was lost, and this one is the first to see it.
        Abandoned: another worker failed or saw a failure first, and says so itself.
    """
    inbox, member = Inbox() if inbox is None else inbox, plan.members[index]
    try:
        known = [order for order in board.orders() if isinstance(order, Open)]
        parts = load_parts(
            plan,
            member.worker,
            config,
            known,
            device,
            stdin,
            lambda what: board.tell(f"loading/{index}", what),
            member.rank,
        )
        board.meet("loaded", LOAD_TIMEOUT_S)
        if begin is not None:
            begin()
            board.tell("begun")
        board.wait("begun", LOAD_TIMEOUT_S)
        # What was loaded stays: the collector need not look at it again, in the middle of a chunk.
        gc.collect()
        gc.freeze()
    except UserError as error:
        board.tell("failed", str(error))
        raise
    orders = OrderReader(board, inbox)
    try:
        ends = connect(inbox, parts.device)
        ends.group.share(parts.denoisers)
        blocks, trace = parts.blocks(plan, member.worker), worker_trace(folder, index, str(member))
        if member.rank:
            result = run_follower(ends.group, parts, blocks, inbox, trace)
        else:
            orders.start()
            blocks = ends.group.lead(blocks)
            result = Worker(plan, member.worker, config, parts, blocks, ends.senders, inbox, trace, board).run()
        ends.close()
        return result
    except (PeerLost, ChannelError) as error:
        teller, line = board.first("lost", [index, str(error)])
        raise (PeerLost if teller == index else Abandoned)(line) from error
    finally:
        orders.close()


def stop_when(stop: threading.Event, act: Callable[[], None]) -> threading.Thread:
    """Call `act` once `stop` is set, from a thread of its own."""

    def wait() -> None:
        stop.wait()
        act()

    thread = threading.Thread(target=wait, name="stop", daemon=True)
    thread.start()
    return thread
