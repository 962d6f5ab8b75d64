"""A process's connections with the others of a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

import devices
from conf.schema import Config
from parallel.channels import ChannelError, Inbox, Sender
from parallel.p2p import connect_all
from parallel.plan import Plan
from parallel.transport import Place, bodies, of_channels, refuse
from runtime.admission import most_streams
from runtime.board import Board
from runtime.group import Group, join_group

MARKS = 2
"""Marks of one stream that may be under way: a state's and the end's."""


class Ends(NamedTuple):
    """A process's connections in one generation.

    Attributes:
        senders: its worker's, by peer.
        group: those who share its passes.
        close: closes everything.
        clocks: by peer, seconds to be added to a moment of its clock, to have it by this process's.
        abort: breaks everything at once: whoever waits there, in any thread, goes on with a failure.
    """

    senders: dict[int, Sender]
    group: Group
    close: Callable[[], None]
    clocks: Callable[[], dict[int, float]] = dict
    abort: Callable[[], None] = lambda: None


class Network(Protocol):
    """Makes a process's connections."""

    def __call__(self, number: int, plan: Plan, index: int, inbox: Inbox, device: torch.device) -> Ends:
        """Those of a member of the plan in generation `number`, whose inbox this is; messages live on `device`."""
        ...


def credits(plan: Plan, config: Config) -> int:
    """Messages a channel may hold: as many as there can be, so that no worker waits for another to take them in."""
    return plan.credits(most_streams(config), MARKS)


def over_network(config: Config, store: dist.Store) -> Network:
    """Connections of processes that meet on `store`, on a connection with it of their own: who waits there for a peer
    keeps nobody else from it."""
    patience, transport = config.launcher.timeout_s, config.launcher.transport

    def connect(number: int, plan: Plan, index: int, inbox: Inbox, device: torch.device) -> Ends:
        worker = plan.members[index].worker
        # Channels are the worker's; who only shares its passes has none.
        mine = [pair for pair in plan.channels if worker in pair and plan.members[index].leads]
        place = dist.PrefixStore(f"generation{number}", store.clone())
        group = join_group(plan, index, place, device, inbox, patience, transport)
        peers = {f"{a:04d}-{b:04d}": (b if a == worker else a) for a, b in mine}
        expected = {f"{a:04d}-{b:04d}": size for (a, b), size in bodies(plan).items() if (a, b) in mine}
        senders, receivers = {}, []
        for name, link in connect_all(
            place, worker, peers, device, patience, expected, transport=of_channels(plan, transport)
        ).items():
            if int(name[:4]) == worker:
                check = group.exchange.check if group.exchange else None
                senders[link.peer] = link.sender(inbox, credits(plan, config), check=check)
            else:
                receivers.append(link.receiver(inbox))
        ends = (*senders.values(), *receivers)

        def close() -> None:
            failure = None
            for end in (group, *ends):
                try:
                    end.close()
                except ChannelError as error:
                    failure = failure or error
            if failure is not None:
                raise failure

        def clocks() -> dict[int, float]:
            return {end.peer: end.offset for end in ends}

        def abort() -> None:
            group.cut()
            for end in ends:
                end.cut()

        return Ends(senders, group, close, clocks, abort)

    return connect


def agree(plan: Plan, process: int, board: Board, device: torch.device, timeout_s: float) -> None:
    """Find out before anything loads whether tensors can go from card to card, as they are asked to.

    Raises:
        UserError: two processes cannot exchange them by NCCL.
    """
    board.tell(f"place/{process}", Place.of(devices.of(device)))
    places = []
    for other in range(plan.processes):
        board.wait(f"place/{other}", timeout_s)
        places.append(Place(*board.told(f"place/{other}")))
    refuse(plan, places)
