"""One process of a run: load, meet the others, and be a worker of one generation after another. The same as a process
under torchrun or Ray, and as a thread of one process.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

import devices
from conf.errors import UserError
from conf.schema import Config
from parallel.channels import ChannelError, Inbox
from parallel.plan import Plan
from parallel.transport import NCCL
from runtime import cuts
from runtime.block import Block
from runtime.board import DRIVER, Abandoned, Board, OrderReader, PeerLost
from runtime.folder import require_shared
from runtime.generations import Generation, Superseded
from runtime.group import run_follower
from runtime.loading import load_parts, load_spare
from runtime.network import Ends, Network, agree
from runtime.orders import Halt, Open, Order, Prepare
from runtime.parts import Parts
from runtime.progress import Loading
from runtime.pulse import Pulse, beat_s
from runtime.reasons import Reason
from runtime.report import worker_report
from runtime.room import free_bytes, require_together, room, wait_for
from runtime.saving import CUTS, Saver
from runtime.trace import Trace, worker_trace
from runtime.worker import Worker

LOAD_TIMEOUT_S = 3600.0
"""Longest wait for the others to load: a cold disk may need minutes for a 14B model."""
WAIT_S = 0.02
"""How often a process that waits for another generation looks for it."""
ONE_HOST, SEVERAL_HOSTS = "one host", "several hosts"
"""What is told as `begun`: where a run's processes may be."""
OWN = "own"
"""The key under which a run tells how many of the first orders are its own."""
LOST = PeerLost.__name__
"""The kind of reason that says who was lost."""


def run_worker(
    generation: Generation,
    process: int,
    config: Config,
    board: Board,
    folder: Path,
    network: Network,
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    inbox: Inbox | None = None,
    node: int | str = 0,
    first: Callable[[], None] = lambda: None,
    plan: Plan | None = None,
) -> None:
    """Be a process of a run until the pipeline is closed and every stream has ended; says on the board how it went:
    `left/PROCESS` is this process's part of the report, or False, and `failed` what failed first in the run. Where
    workers are recovered, what fails here after streaming has begun is told as `raised/PROCESS`.

    Args:
        generation: with which this process begins. One that is no member of its plan is a spare.
        process: the number of this process.
        config: the run.
        board: shared by all processes; orders come from it.
        folder: for results; made by whoever started the run, once all workers have loaded.
        network: makes this process's channels.
        device: None: as the configuration says.
        stdin: where live sources read; None: standard input.
        inbox: of this worker in the first generation; None: a new one.
        node: the machine that this is, for the report.
        first: called before anything is loaded; what it raises is this process's failure.
        plan: of the first generation, made already; None: its settings say it.

    Raises:
        Abandoned: another process failed before this one did.
        Exception: what went wrong here, and was the first in the run to do so.
    """
    left, launcher = False, config.launcher
    pulse = Pulse(board, launcher.timeout_s, beat_s(launcher))
    pulse.start()
    plan = plan or generation.of(config)[1]
    one = Process(generation, plan, process, config, board, folder, network, pulse, device, stdin, inbox)
    try:
        first()
        left = one.run() | {"node": node}
    except Exception as error:
        reason = _reason(error, f"worker {one.name}, {pulse.look().at}")
        with suppress(RuntimeError):  # the store is gone: nobody else is there to have failed first
            mistaken = isinstance(error, UserError) and not one.met and not generation.number
            if launcher.in_place and board.told("begun") and not (mistaken or isinstance(error, Abandoned)):
                board.tell(f"raised/{process}", reason.to_dict())
                raise
            first = board.first("failed", {"process": process} | reason.to_dict())
            if first["process"] != process:
                raise Abandoned(first["line"]) from error
        if isinstance(error, ChannelError):
            raise PeerLost(str(error)) from error
        raise
    finally:
        pulse.close()
        with suppress(RuntimeError):
            board.tell(f"left/{process}", left)


def _reason(error: Exception, where: str) -> Reason:
    """Why a process ends. Who was lost is told in its line, not by a traceback."""
    return Reason(str(error), LOST, where) if isinstance(error, PeerLost | ChannelError) else Reason.of(error, where)


def share_folder(board: Board, config: Config) -> None:
    """Refuse an output folder that not all processes of a run see, the launcher (who has made it) included; and a
    folder of cuts, which whoever goes on with a stream has to read, wherever it runs.

    Raises:
        UserError: a process is on a host that does not share it.
    """
    members = range(DRIVER, board.workers)
    launcher, makes = config.launcher, board.index == DRIVER
    require_shared(board, Path(config.output_dir), members, makes, launcher.timeout_s)
    if launcher.in_place:
        require_shared(board, Path(board.told(CUTS)), members, makes, launcher.timeout_s, "launcher.cuts")


def _closed(ends: Ends) -> None:
    """Have channels that were cut off end their threads, which may take a moment."""
    with suppress(ChannelError):
        ends.close()


class Process:
    """What a process does; the arguments are `run_worker`'s.

    Attributes:
        name: of the member of the plan that it is, or was.
        met: whether all have loaded and see the same folders.
    """

    def __init__(
        self,
        generation: Generation,
        plan: Plan,
        process: int,
        config: Config,
        board: Board,
        folder: Path,
        network: Network,
        pulse: Pulse,
        device: torch.device | None,
        stdin: BinaryIO | None,
        inbox: Inbox | None,
    ):
        self.generation, self.process, self.config, self.board = generation, process, config, board
        self.folder, self.network, self.pulse = folder, network, pulse
        self.device, self.stdin = device, stdin
        self.parts: Parts | None = None
        self.met = False
        self.inbox = inbox or Inbox()
        self._turned = threading.Event()
        """Set when the generation is over."""
        self._ends: Ends | None = None
        self._prepared: tuple[Prepare, Parts] | None = None
        self._trace: Trace | None = None
        self._orders = OrderReader(board, self.inbox, generation.number, self._heard)
        self.plan = plan
        self.index = generation.index(process)
        self.name = "spare" if self.index is None else str(self.plan.members[self.index])

    def run(self) -> dict[str, Any]:
        """Load, and be what the generations say; returns this process's part of the report.

        Raises:
            Abandoned: the run is given up.
            PeerLost: a peer is gone, and workers are not recovered.
        """
        if self.config.launcher.transport == NCCL and not self.generation.number and self.index is not None:
            agree(self.plan, self.process, self.board, self._chosen(), self.config.launcher.timeout_s)
        self._load()
        self._meet()
        with ExitStack() as held:
            if (memory := self.board.told(CUTS)) and self.config.launcher.in_place:
                held.enter_context(cuts.hold(memory))
            trace = held.enter_context(self._tracing())
            report = None if self.index is None or self.generation.number else self._be(trace)
            while report is None:
                if not self._next():
                    trace.close()
                    report = self._report(trace)
                else:
                    report = self._be(trace)
        if self.parts is not None:
            self.parts.queue.close()
        return report

    # -- before the first generation ----------------------------------------------------------------------------------

    def _chosen(self) -> torch.device:
        return devices.choose(self.config.device.kind) if self.device is None else self.device

    def _load(self) -> None:
        """Load what this process holds. Between two parts it looks whether that is still wanted.

        Raises:
            Abandoned: another process failed meanwhile, or the run was given up.
            UserError: what was to be loaded or opened cannot be used.
        """
        # The run's own streams are looked at before weights load. One that came later costs nobody else anything.
        own = self.board.told(OWN) or 0
        known: list[Open] = []
        if not self.generation.number:
            known = [order for order in self._orders.orders() if isinstance(order, Open) and order.number < own]
        self._claim(self._chosen())
        if self.index is None:
            self.parts = load_spare(self.plan, self.config, self._chosen(), self.stdin, Loading(self._loading))
        else:
            self.parts = self._loaded(self.plan, self.index, None, known)
            self._tell_room()
        self.pulse.at("waiting for the others to load")

    def _loaded(self, plan: Plan, index: int, held: Parts | None, known: list[Open] = []) -> Parts:  # noqa: B006
        """What a member of a plan needs, as far as possible of what is held."""
        member, loading = plan.members[index], Loading(self._loading)
        return load_parts(
            plan, member.worker, self.config, known, self.device, self.stdin, loading, member.leads, held=held
        )

    def _loading(self, loading: Loading) -> None:
        if failed := self.board.told("failed"):
            raise Abandoned(failed["line"])
        if not self._ends:
            self.pulse.at(loading)

    def _tell_room(self) -> None:
        member = self.plan.members[self.index]
        if member.leads:
            self.board.tell(f"room/{member.worker}", room(self.parts))

    def _claim(self, device: torch.device) -> None:
        """Tell what this process is going to hold, and look at what others told who load now and use the same memory.

        What is free there was told by whoever looked first, before anything was loaded. Who comes later, in the place
        of one that is gone, waits for its memory.

        Raises:
            UserError: together they hold more than is free.
        """
        if self.config.device.kind == "emulated":
            return
        plan, generation = self.plan, self.generation
        if self.index is None:
            needed, beside = plan.spare_bytes, (self.process,)
        else:
            member = plan.members[self.index]
            needed, beside = plan.weight_bytes(member.worker, member.rank), generation.processes
        start = f"holds/{generation.number}"
        before = self.board.told(f"{start}/{self.process}")  # by one that was lost while it loaded
        begun = self.board.told("begun")
        if before or begun:
            wait_for(needed, device)
        if not begun:  # spares are numbered behind the members
            beside = range(plan.processes + self.config.launcher.spares)
        memory, free = free_bytes(device)
        self.board.tell(f"{start}/{self.process}", before or {"memory": memory, "free": free, "bytes": needed})
        told = [self.board.told(f"{start}/{process}") for process in beside]
        require_together(self.config, [one for one in told if one and one["memory"] == memory])

    def _meet(self) -> None:
        """Wait until all have loaded and the output folder has been made.

        Raises:
            UserError: that folder is not everybody's.
        """
        self.board.tell(f"loaded/{self.process}")
        self.board.wait("begun", LOAD_TIMEOUT_S)
        if self.board.told("begun") == SEVERAL_HOSTS and not self.generation.number and self.index is not None:
            share_folder(self.board, self.config)
        # What was loaded stays: the collector need not look at it again, in the middle of a chunk.
        gc.collect()
        gc.freeze()
        self.met = True

    # -- a generation -------------------------------------------------------------------------------------------------

    def _be(self, trace: Trace) -> dict[str, Any] | None:
        """Be a member of the generation's plan; returns this process's part of the report, None where another
        generation is to come."""
        member, blocks = self.plan.members[self.index], {}
        self.name = str(member)
        try:
            self._orders_begin(member.leads)
            self.pulse.at("connecting")
            ends = self._connected()
            ends.group.share(self.parts.denoisers)
            blocks = self.parts.blocks(self.plan, member.worker)
            self.board.tell(f"ready/{self.generation.number}/{self.process}")
            report = self._work(ends, blocks, trace)
            for packed in report["traces"]:
                packed.update(of=member.worker, clocks=ends.clocks())
            self.pulse.at("closing")
            ends.close()
            return report
        except (Superseded, PeerLost, ChannelError) as error:
            if not self.config.launcher.in_place:
                raise
            self._wait_for_the_turn(error)
            return None
        except BaseException:
            self.parts.kept.leave(False, False)
            raise
        finally:
            # Its box is of this generation: who is told of another, and cannot reach the board, is gone.
            self._orders.close()
            if self._turned.is_set():
                self._let_go(blocks)

    def _orders_begin(self, leads: bool) -> None:
        """Orders are the leaders'; but whoever may be superseded hears of that."""
        if leads or self.config.launcher.in_place:
            self._orders.start()

    def _connected(self) -> Ends:
        """Connections with the others. A peer that died meanwhile is waited for in vain, on a thread that is left
        alone then.

        Raises:
            Superseded: another generation begins.
            ChannelError: a peer did not come.
        """
        number, plan, index, inbox = self.generation.number, self.plan, self.index, self.inbox
        if not self.config.launcher.in_place:
            return self.network(number, plan, index, inbox, self.parts.device)
        made: queue.SimpleQueue[Ends | Exception] = queue.SimpleQueue()
        device = self.parts.device

        def connect() -> None:
            devices.of(device).use()
            try:
                made.put(self.network(number, plan, index, inbox, device))
            except Exception as error:
                made.put(error)

        threading.Thread(target=connect, name="connect", daemon=True).start()
        while True:
            with suppress(queue.Empty):
                ends = made.get(timeout=WAIT_S)
                break
            if self._turned.is_set():
                raise Superseded
        if isinstance(ends, Exception):
            raise ends
        self._ends = ends
        if self._turned.is_set():
            raise Superseded
        return ends

    def _work(self, ends: Ends, blocks: dict[int, Block], trace: Trace) -> dict[str, Any]:
        """Be the worker, or one of those who share its passes."""
        member, inbox = self.plan.members[self.index], self.inbox
        if member.rank:
            self.pulse.at("following")
            device, number = self.parts.queue.device, self.generation.number
            saver = Saver(self.board, device, self.config.launcher.cuts, number)
            saver.start()
            for block in blocks.values():
                block.use(saver)
            try:
                return run_follower(ends.group, self.parts, blocks, inbox, trace)
            finally:
                saver.close()
        led = ends.group.lead(blocks)
        worker = Worker(
            self.plan, member.worker, self.config, self.parts, led, ends.senders, inbox, trace, self.board,
            self.generation,
        )  # fmt: skip
        self.pulse.look = worker.look
        return worker.run()

    def _heard(self, order: Order) -> None:
        """On the thread that reads orders: what does not wait for the loop."""
        if isinstance(order, Halt):
            self._turned.set()
            self.inbox.put(Superseded(f"generation {order.generation}"))
            if self._ends is not None:
                self._ends.abort()
        elif isinstance(order, Prepare):
            threading.Thread(target=self._prepare, args=(order,), name="prepare", daemon=True).start()

    def _prepare(self, order: Prepare) -> None:
        """Load for another plan, beside the work."""
        told: dict[str, Any] = {}
        try:
            _, plan = Generation(order.generation, asdict(order.plan), ()).of(self.config)
            devices.of(self.parts.device).use()
            self._prepared = order, self._loaded(plan, order.index, self.parts)
        except Exception as error:
            told = Reason.of(error, f"worker {self.name}, loading for another plan").to_dict()
        self.board.tell(f"prepared/{order.generation}/{self.process}", told)

    # -- between two --------------------------------------------------------------------------------------------------

    def _wait_for_the_turn(self, error: Exception) -> None:
        """Who misses a peer tells of it, and waits for what the driver makes of it.

        Raises:
            Abandoned: the run is given up.
        """
        if self._turned.is_set():
            return
        self.pulse.at("waiting for the others")
        self.board.event(
            {"event": "missed", "generation": self.generation.number, "process": self.process, "line": str(error)}
        )
        while not self._turned.wait(WAIT_S):
            if failed := self.board.told("failed"):
                self.parts.kept.leave(False, False)
                raise Abandoned(failed["line"])

    def _let_go(self, blocks: dict[int, Block]) -> None:
        """The generation is over: its channels and banks are free."""
        if self._ends is not None:
            self._ends.abort()
            threading.Thread(target=_closed, args=(self._ends,), name="close", daemon=True).start()
            self._ends = None
        devices.of(self.parts.device).synchronize()
        for block in blocks.values():
            block.clear()

    def _next(self) -> bool:
        """Wait for a generation in which this process is a member, and become that; False: there will be none.

        Raises:
            Abandoned: the run is given up.
        """
        if self._turned.is_set():
            self.board.tell(f"halted/{self.generation.number}/{self.process}")
        self.pulse.at("waiting for a place")
        after = self.generation.number if self._turned.is_set() or self.index is None else self.generation.number - 1
        while True:
            if failed := self.board.told("failed"):
                self.parts.kept.leave(False, False)
                raise Abandoned(failed["line"])
            if self.board.told(f"leave/{self.process}"):
                self.parts.kept.leave(False, False)
                return False
            generation = Generation.told(self.board, after)
            if generation is not None:
                after = generation.number
                if (index := generation.index(self.process)) is not None:
                    break
                self.parts.kept.leave(False, False)
            threading.Event().wait(WAIT_S)
        self._become(generation, index)
        return True

    def _become(self, generation: Generation, index: int) -> None:
        self.generation, self.index = generation, index
        self._turned, self.inbox = threading.Event(), Inbox()
        self._orders = OrderReader(self.board, self.inbox, generation.number, self._heard)
        _, self.plan = generation.of(self.config)
        prepared, self._prepared = self._prepared, None
        if prepared and (asdict(prepared[0].plan), prepared[0].index) == (generation.plan, index):
            self.parts = prepared[1]
        else:
            self.parts = self._loaded(self.plan, index, self.parts)
        member = self.plan.members[index]
        self.parts.kept.leave(
            member.leads and member.worker == self.plan.encode,
            member.leads and member.worker == self.plan.stages[-1].worker,
        )
        self._tell_room()

    @contextmanager
    def _tracing(self) -> Iterator[Trace]:
        with worker_trace(self.folder, self.process, self.name, self.config.sink.trace) as trace:
            yield trace

    def _report(self, trace: Trace) -> dict[str, Any]:
        return worker_report(trace, self.parts.weight_bytes, self.parts.bank_bytes, self.parts.device)
