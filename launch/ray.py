"""Start-up on Ray: every worker is an actor, pinned to its node by a placement group; Ray watches over them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ray
import ray.exceptions
import torch
import torch.distributed as dist
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

import devices
from conf.errors import UserError
from conf.schema import Config, DeviceConfig
from launch.local import descriptor
from launch.meeting import Meeting, attend
from launch.places import refuse_unjoined
from launch.ray_cluster import answering, cluster, free, nodes
from parallel.address import refuse_loopback
from parallel.placement import hosts, place
from parallel.plan import Plan
from runtime.board import Board
from runtime.crew import NoRoom
from runtime.generations import Generation
from runtime.heap import few_arenas
from runtime.network import over_network
from runtime.process import run_worker
from runtime.reasons import Reason
from runtime.running import Running, Start

log = logging.getLogger(__name__)

POSITION = struct.Struct(">Q")
"""What a reader of standard input says first: how many of its bytes were read, by it or by others before."""
BLOCK = ON_THE_WAY = 1 << 16
"""Bytes that are sent at a time, and that a socket is to hold, on either side."""
KEPT = 1 << 22
"""Bytes that were sent and are sent again to whoever comes next: many times what sockets hold."""


@ray.remote(max_restarts=0)
class WorkerActor:
    """A worker of a plan, in a process of its own."""

    def run(
        self,
        generation: Generation,
        process: int,
        config: Config,
        address: tuple[str, int],
        stdin: tuple[str, int] | None,
        processes: int,
    ) -> None:
        """Be a process of the run until every stream has ended."""
        few_arenas()
        store, device = _store_at(address, config), _gpu(config)
        sys.stdin = None  # its own is not for sources
        stream = Feed(stdin) if stdin else None  # connected with when a source first reads it
        board, network = Board(store, process, processes), over_network(config, store)
        node = ray.get_runtime_context().get_node_id()
        with contextlib.suppress(Exception):  # told on the board, with its traceback
            run_worker(
                generation, process, config, board, Path(config.output_dir), network, device, stream, node=node,
                first=partial(refuse_loopback, store, process, processes) if process < processes else lambda: None,
            )  # fmt: skip


@ray.remote(max_restarts=0)
class DoctorActor:
    """Who looks around where a worker would be."""

    def attend(self, plan: Plan, index: int, config: Config, address: tuple[str, int]) -> None:
        """Be worker `index` of a meeting."""
        attend(Meeting(_store_at(address, config), index, plan, config, _gpu(config)))


def _store_at(address: tuple[str, int], config: Config) -> dist.Store:
    return dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=config.launcher.timeout_s))


def _gpu(config: Config) -> torch.device | None:
    """The GPU that Ray shows an actor; None: it has none."""
    return devices.choose("cuda") if config.device.may_be_gpu and devices.count() else None


class Seats(NamedTuple):
    """Where the processes of a plan sit.

    Attributes:
        bundles: resources, one bundle for each node that is used: what is in one bundle is on one node.
        of: the bundle of every process.
        shares: of a bundle, of every process.
        cards: of every process, (node, which of its GPUs); empty: they have processors.
    """

    bundles: list[dict[str, float]]
    of: tuple[int, ...]
    shares: tuple[dict[str, float], ...]
    cards: tuple[tuple[int, int], ...] = ()


def seats(plan: Plan, resources: Sequence[dict[str, float]], device: DeviceConfig) -> Seats:
    """Where a plan's processes go: to GPUs, which some share where there are fewer, or to fractions of processors where
    there are none.

    Args:
        resources: of every node, as Ray counts them.
        device: what the run may use.

    Raises:
        UserError: GPUs are asked for, and there are none.
    """
    gpus = [int(node.get("GPU", 0)) if device.may_be_gpu else 0 for node in resources]
    if any(gpus):
        return _on_gpus(plan, gpus)
    if device.kind == "cuda":
        raise UserError("device=cuda", "the Ray cluster has no GPUs", "use device=cpu or device=auto")
    cpus = [node.get("CPU", 0.0) for node in resources]
    share = min(1.0, round(0.9 * sum(cpus) / plan.processes, 4))
    while sum(room := [int(c / share) for c in cpus]) < plan.processes:
        share = round(0.9 * share, 4)
    held = [node for node, count in enumerate(room) for _ in range(count)]
    at = [held[seat] for seat in hosts(plan, held)]
    return _bundled(at, [{"CPU": share}] * plan.processes, lambda node: {"CPU": round(share * at.count(node), 4)})


def _on_gpus(plan: Plan, gpus: Sequence[int]) -> Seats:
    """Ray chooses which of a node's GPUs an actor has, and puts parts of one together as they fit. So all parts on a
    node are equal, and fit in whatever order actors come; who computes most asks for a whole one."""
    nodes = [node for node, count in enumerate(gpus) for _ in range(count)]
    placed = place(plan, nodes)
    at = [nodes[card] for card in placed]
    most = {node: max(placed.count(card) for card in placed if nodes[card] == node) for node in at}
    parts = [1 / most[nodes[card]] if placed.count(card) > 1 else 1.0 for card in placed]
    # Ray counts in ten thousandths.
    shares = [{"GPU": math.floor(part * 1e4) / 1e4} for part in parts]
    found = _bundled(at, shares, lambda node: {"GPU": float(len({c for c in placed if nodes[c] == node}))})
    return found._replace(cards=tuple((nodes[card], card - nodes.index(nodes[card])) for card in placed))


def _bundled(at: Sequence[int], shares: Sequence[dict], content: Callable[[int], dict[str, float]]) -> Seats:
    """Seats of processes on these nodes."""
    used = list(dict.fromkeys(at))
    return Seats([content(node) for node in used], tuple(used.index(node) for node in at), tuple(shares))


def cards(plan: Plan, config: Config) -> tuple[str, ...]:
    """The GPU of every process; empty: they have none. Ray runs already, and may number them otherwise."""
    there = nodes()
    found = seats(plan, [node["Resources"] for node in there], config.device).cards
    return tuple(f"GPU {card} of {there[node]['NodeManagerHostname']}" for node, card in found)


class Room:
    """The resources of a plan's processes on a cluster, as a context.

    Raises:
        UserError: Ray has no room for them.
    """

    def __init__(self, plan: Plan, config: Config):
        self._seats = seats(plan, [node["Resources"] for node in nodes()], config.device)
        self._group = placement_group(self._seats.bundles, strategy="PACK")
        if not self._group.wait(timeout_seconds=config.launcher.timeout_s):
            remove_placement_group(self._group)
            raise UserError(
                f"plan.workers={plan.processes}",
                f"Ray has no room for {' and '.join(map(str, self._seats.bundles))} within "
                f"{config.launcher.timeout_s:g} s",
                "use fewer workers, or wait until others have left",
            )
        # Those that are to share a GPU come one after the other, which is how Ray puts them together.
        self.order = sorted(range(plan.processes), key=lambda index: self._seats.cards[index : index + 1])

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        remove_placement_group(self._group)

    def actor(self, kind: Any, index: int) -> Any:
        """An actor of class `kind` in the seat of a member of the plan."""
        share = self._seats.shares[index]
        return kind.options(
            num_cpus=share.get("CPU", 0),
            num_gpus=share.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, self._seats.of[index]),
        ).remote()

    def free_seat(self, taken: Iterable[int], there: Collection[str]) -> int | None:
        """A seat of the plan that nobody has, on a node that is there; None: there is none. What a lost node had Ray
        moves to another when it finds room for all of it.

        Args:
            taken: seats that processes have.
            there: nodes that are, by their ids.
        """
        at = placement_group_table(self._group)["bundles_to_node_id"]
        left = set(range(len(self._seats.of))) - set(taken)
        return next((seat for seat in sorted(left) if at.get(self._seats.of[seat]) in there), None)

    def node_of(self, seat: int) -> str | None:
        """The id of the node that a seat is on."""
        return placement_group_table(self._group)["bundles_to_node_id"].get(self._seats.of[seat])

    @property
    def gpus(self) -> float:
        """Of one more process: as many as that of the others which has most."""
        return max(share.get("GPU", 0.0) for share in self._seats.shares)

    def another(self, kind: Any, node: str) -> Any:
        """One more, on a node that has room: it takes a GPU where the others have one, and of processors nothing that
        is counted."""
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        return kind.options(num_cpus=0, num_gpus=self.gpus, scheduling_strategy=where).remote()


@contextlib.contextmanager
def actors(kind: Any, plan: Plan, config: Config) -> Iterator[list[Any]]:
    """An actor of class `kind` for every process of a plan, each where it belongs.

    Raises:
        UserError: Ray has no room for them.
    """
    with Room(plan, config) as room:
        made = {index: room.actor(kind, index) for index in room.order}
        yield [made[index] for index in range(plan.processes)]


class Feed:
    """Standard input of whoever started the run. It is taken from there when a source first reads it."""

    def __init__(self, address: tuple[str, int]):
        self._address = address
        self._connection: socket.socket | None = None

    def go_on(self, position: int) -> None:
        """Take what is behind the first `position` bytes, whoever has taken those."""
        if self._connection is not None:
            self._connection.close()
        self._connection = socket.create_connection(self._address)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ON_THE_WAY)
        self._connection.sendall(POSITION.pack(position))

    def fileno(self) -> int:
        if self._connection is None:
            self.go_on(0)
        return self._connection.fileno()


class Sent:
    """A stream that is sent to one reader after the other, from the byte on that each asks for.

    What a socket holds goes with its reader, so what was sent last is kept.

    Args:
        descriptor: where the stream is read, once a reader has all that came before.
    """

    def __init__(self, descriptor: int):
        self._descriptor, self._over = descriptor, False
        self._kept, self._start = bytearray(), 0
        """What is kept, and how many bytes came before it."""

    def to(self, connection: socket.socket, listener: socket.socket) -> None:
        """Send until the reader has all, or another has come.

        Raises:
            OSError: the reader is gone.
        """
        position = self._asked(connection, listener)
        while position is not None:
            at = position - self._start
            held = self._kept[at : at + BLOCK]
            if not held and self._over:
                return  # the end of the connection, which says that this is the end of the stream
            reading, writing = ([], [connection]) if held else ([self._descriptor], [])
            come, free, _ = select.select([listener, *reading], writing, [])
            if listener in come:
                return
            if free:
                position += connection.send(held, socket.MSG_DONTWAIT)
            else:
                self._read()

    def _asked(self, connection: socket.socket, listener: socket.socket) -> int | None:
        """From which byte on a reader is to be sent; None: it has said nothing, and another has come or it is gone."""
        said = b""
        while len(said) < POSITION.size:
            come, _, _ = select.select([listener, connection], [], [])
            if listener in come or not (part := connection.recv(POSITION.size - len(said))):
                return None
            said += part
        (position,) = POSITION.unpack(said)
        if position < self._start:
            log.warning("standard input: %d bytes went with a lost worker", self._start - position)
        return min(max(position, self._start), self._start + len(self._kept))

    def _read(self) -> None:
        block = os.read(self._descriptor, BLOCK)
        self._over = not block
        self._kept += block
        if len(self._kept) > 2 * KEPT:
            self._start += len(self._kept) - KEPT
            del self._kept[:-KEPT]


def _feed(listener: socket.socket, stream: BinaryIO | None) -> None:
    """What live sources read, to whoever connects: actors have no standard input of their own. Who connects next has
    taken the place of one that is lost."""
    sent = None
    with contextlib.suppress(OSError, ValueError):  # the listener was closed: nobody needs it any more
        while True:
            connection, _ = listener.accept()
            sent = sent or Sent(descriptor(stream or sys.stdin.buffer))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ON_THE_WAY)
            with connection, contextlib.suppress(ConnectionError, BlockingIOError):  # its reader is gone
                sent.to(connection, listener)


def launched(start: Start) -> Running:
    """The workers of a run as actors, not started yet; Ray itself is."""
    config = start.config
    config.output_dir = str(Path(config.output_dir).absolute())
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(cluster(config))
        refuse_unjoined(start.plan, config, cards(start.plan, config))
        running = RayRun(start, host)
        running.open_first(start.first)
        running.held = stack.pop_all()
    return running


class RayRun(Running):
    """A plan's workers as Ray actors.

    Args:
        start: what to run.
        host: this machine's address, as the cluster knows it.
    """

    starts = True

    def __init__(self, start: Start, host: str):
        super().__init__(start.plan, start.config, dist.TCPStore(host, 0, is_master=True, wait_for_workers=False))
        self.held = contextlib.ExitStack()
        self._given, self.host = start, host
        self._initial = start.plan.processes
        self._actors: dict[int, Any] = {}
        self._running: dict[int, ray.ObjectRef] = {}
        self._nodes: dict[str, int] = {}
        self._seated: dict[int, int] = {}
        self._at: dict[int, str | None] = {}
        """Of every process its seat in the room, where it has one, and its node."""
        self._since: dict[int, float] = {}
        self._stdin: tuple[str, int] | None = None
        self._room: Room | None = None

    def _launch(self) -> None:
        if self._given.live and (self._given.stdin or sys.stdin):
            listener = self.held.enter_context(socket.create_server((self.host, 0)))
            threading.Thread(target=_feed, args=(listener, self._given.stdin), daemon=True).start()
            self._stdin = listener.getsockname()[:2]
        self._nodes = {node["NodeID"]: number for number, node in enumerate(nodes())}
        self._room = self.held.enter_context(Room(self.plan, self.config))
        for index in self._room.order:
            self._start(index, self.generation)
        if self.supervisor is not None:
            self.supervisor.crew.start_spares()

    def _start(self, process: int, generation: Generation) -> None:
        # An actor that has done its part stays, and has its seat: nothing would ever be placed there.
        for gone in self._actors.keys() - self.left:
            ray.kill(self._actors.pop(gone))
        seat, node = self._place(process, generation.index(process) is None)
        if seat is None:
            actor = self._room.another(WorkerActor, node)
        else:
            self._seated[process], node, actor = seat, self._room.node_of(seat), self._room.actor(WorkerActor, seat)
        self._at[process], self._actors[process], self._since[process] = node, actor, time.monotonic()
        address = self.host, self.store.port
        self._running[process] = actor.run.remote(generation, process, self.config, address, self._stdin, self._initial)
        if self.recovers:
            threading.Thread(target=self._notice, args=(process,), name=f"end of {process}", daemon=True).start()

    def _place(self, process: int, spare: bool) -> tuple[int | None, str]:
        """(seat, node where it has none) of a process: members take seats that are free, and spares leave them while
        there is room elsewhere.

        Raises:
            NoRoom: there is none.
        """
        if process < self._initial:
            return process, ""
        seat = self._room.free_seat((self._seated.get(one) for one in self.left - {process}), answering())
        if seat is not None and not spare:
            return seat, ""
        try:
            return None, self._node()
        except NoRoom:
            if seat is None:
                raise
            return seat, ""

    def _node(self) -> str:
        """The node of one more process: of those with room the one where fewest are, so that a lost node takes few.

        Raises:
            NoRoom: none has.
        """
        there, gpus = answering(), self._room.gpus
        open_ = free() if gpus else {}
        have = [node for node in there if not gpus or open_.get(node, {}).get("GPU", 0.0) >= gpus]
        if not have:
            raise NoRoom(f"no node of the Ray cluster has {gpus:g} of a GPU free" if gpus else "Ray has no node left")
        members = [self._at.get(p) for p in self.generation.processes if p in self.left]
        others = [self._at.get(p) for p in self.left]
        return min(have, key=lambda node: (members.count(node), others.count(node), -there[node]))

    def _notice(self, process: int) -> None:
        """Wake who watches over the workers as soon as one has ended."""
        with contextlib.suppress(Exception):  # Ray itself may be over
            ray.wait([self._running[process]])
        self._wake.set()

    def _kill(self, process: int) -> None:
        ray.kill(self._actors[process])

    def _gone(self, index: int) -> str | None:
        done, _ = ray.wait([self._running[index]], timeout=0)
        if not done:
            return None
        try:
            ray.get(self._running[index])
        except ray.exceptions.RayTaskError as error:
            if self.recovers and self._begun:
                return f"it could not start: {error.cause}"
            # Raised by what is round the worker: its own failures it tells itself.
            self._fail(Reason.of(error.cause, f"{self.name(index)}, starting"), index)
        except ray.exceptions.RayError:
            return "its process ended"
        return "its actor ended"

    def look(self, lost: Callable[[int, str], object]) -> None:
        super().look(lost)
        for report in self.roll.reports.values():
            if not isinstance(report["node"], int):
                report["node"] = self._nodes.setdefault(report["node"], len(self._nodes))

    def _end(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
