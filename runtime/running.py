"""A running pipeline as whoever started it holds it: `start(config) -> Running`, whatever the launcher.

A thread watches over the workers: it says when all have loaded and streaming may begin, notices who has ended, and ends
the others if one failed. Launchers say how workers are started, found to be gone, and ended.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import torch.distributed as dist

from conf.errors import UserError
from conf.schema import Config
from parallel.plan import Plan
from runtime import cuts
from runtime.board import DRIVER, Abandoned, Board, PeerLost
from runtime.crew import NoRoom
from runtime.generations import Generation
from runtime.pipeline import Pipeline
from runtime.process import LOST, ONE_HOST, OWN, SEVERAL_HOSTS, share_folder
from runtime.reasons import Reason
from runtime.roll import Health, Roll
from runtime.saving import CUTS
from runtime.supervisor import Supervisor, Unrecovered

LOADING_POLL_S, POLL_S = 0.05, 0.2
"""How often workers are looked after, before streams go and then; a launcher may know sooner."""
SETTLE_S, SHORTLY_S = 0.5, 0.05
"""How long after a process has gone its report may still come; and where streams wait for another in its place: they
cost more than a report."""
GRACE_S = 10.0
"""How long the survivors of a failure may take to finish their files."""
STOPPED = "Stopped"
INTERRUPT = "interrupt"
"""The key under which any process of a run asks for its end."""


class Stopped(Exception):  # noqa: N818  what was asked for, not an error
    """The run was told to end before anything was streamed, or to end at once."""


class WorkerFailed(Exception):  # noqa: N818  an event to report, not an error of whoever waits
    """A worker raised what no worker should. One line: where, and what.

    Attributes:
        traceback: the worker's.
    """

    def __init__(self, reason: Reason):
        self.traceback = reason.traceback
        super().__init__(f"{reason.where}: {reason.line}")


def repeated(line: str) -> None:
    """Say on standard error what a worker says there."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


@dataclass(frozen=True)
class Start:
    """What a launcher is told.

    Attributes:
        plan, config: what to run.
        stdin: where live sources read; None: standard input.
        first: opens the first streams, before anything is loaded: bad input shows before weights do.
        tell: is given every line that processes of this machine say on standard error.
    """

    plan: Plan
    config: Config
    stdin: BinaryIO | None
    first: Callable[[Pipeline], None]
    tell: Callable[[str], None] = repeated

    @property
    def live(self) -> bool:
        """Whether sources may read standard input: those of the run, or of streams that are opened later."""
        return self.config.control != "-"


class Running(ABC):
    """Workers of a plan, and the pipeline that they are.

    Args:
        plan, config: what runs.
        store: that all workers share.

    Attributes:
        pipeline: opens, steers and ends streams.
        leads: whether the run's results are for this process to tell: it is the only one that holds the run, or the
            first of several (torchrun). The others only wait.
        held: what is let go of when all workers have left, the last first.
        roll: its processes, as they are heard of.
    """

    pipeline: Pipeline
    host = "127.0.0.1"
    """This machine, as the machines of workers know it."""
    one_host = False
    """Whether all processes are on this host whatever happens, and so share its files."""
    starts = False
    """Whether it can start one process more, and end one of several."""
    _start: Callable[[int, Generation], None]
    """Of a launcher that does: start the process of a number, which begins with a generation; raises NoRoom."""
    _kill: Callable[[int], None]
    """Likewise: end one process at once."""

    def __init__(self, plan: Plan, config: Config, store: dist.Store, leads: bool = True):
        self.plan, self.config, self.store, self.leads = plan, config, store, leads
        self.generation = Generation.first(config, plan)
        self.board = Board(store, DRIVER, plan.processes)
        if leads:
            self.pipeline = Pipeline(self.board, plan, config)
        self.held = ExitStack()
        self.roll = Roll(self.board, plan.processes)
        self._begin: Callable[[], None] = lambda: None
        self._begun = self._closed = self._draining = self._ending = False
        self._error: BaseException | None = None
        self._wake, self._over = threading.Event(), threading.Event()
        self._memory: cuts.Hold | None = None
        """The folder of cuts: workers come and go, and each holds it as long as it lives."""
        self.supervisor = Supervisor(self) if leads and self.recovers else None
        if self.supervisor is not None:
            self.pipeline.changer, self.pipeline.heard = self.supervisor.change, self._wake.set
        self._watching = threading.Thread(target=self._watch, name="running", daemon=True)

    @property
    def recovers(self) -> bool:
        """Whether a lost process is recovered here."""
        return self.starts and self.config.launcher.in_place

    def open_first(self, first: Callable[[Pipeline], None]) -> None:
        """Have `first` open the run's own streams, before workers start: what is wrong with one is the run's mistake.

        All that are opened later, or by orders of `control`, are guests: a mistake ends that stream and nothing else.
        """
        if self.supervisor is not None:
            root = self.config.launcher.cuts
            try:
                self._memory = cuts.hold(self.board.first(CUTS, cuts.name(root)))
            except OSError as error:
                rule = f"no folder can be made there ({error.strerror})"
                raise UserError(f"launcher.cuts={root}", rule, "give a folder in memory, such as /dev/shm") from error
            self.pipeline.memory = self._memory.path
        try:
            first(self.pipeline)
        except BaseException:
            self._forget_cuts()
            raise
        if self.config.control is None:
            self.board.tell(OWN, self.board.given)

    def _forget_cuts(self) -> None:
        if self._memory is not None:
            self._memory.close()

    # -- what its holder does -----------------------------------------------------------------------------------------

    def start(self, begin: Callable[[], None] = lambda: None) -> Running:
        """Start the workers; `begin` makes the output folder, once all have loaded, in another thread."""
        self._begin = begin
        try:
            self._launch()
        except BaseException:
            self._end()
            self._release()
            self._forget_cuts()
            raise
        self._watching.start()
        return self

    def health(self) -> list[Health]:
        """How every process is, as far as it has been heard of."""
        seats, timeout_s = enumerate(self.generation.processes), self.config.launcher.timeout_s
        return [self.roll.health(str(self.plan.members[index]), process, timeout_s) for index, process in seats]

    @property
    def begun(self) -> bool:
        """Whether all workers have loaded and streams go."""
        return self._begun

    def close(self, now: bool = False) -> None:
        """Open no more streams: workers leave when those that are open have ended. `now`: they end at once."""
        if now:
            self._ending = True
            self._wake.set()
        elif not self._closed:
            self._closed = True
            self.pipeline.close()

    def interrupt(self) -> None:
        """Stop every stream at its next chunk, and open no more; before anything was streamed, end at once."""
        self.board.tell(INTERRUPT)
        self._wake.set()

    def wait(self, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Wait until the pipeline has been closed and all streams have ended; returns every process's part of a report.

        Raises:
            UserError: a source, a weight file or a setting is wrong.
            PeerLost: a worker was lost; names it.
            WorkerFailed: a worker raised something else (or just that, where workers are threads of this process).
            Stopped: the run was ended before its time by its holder.
            TimeoutError: it goes on after `timeout_s`.
        """
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"the run has not ended within {timeout_s:g} s")
        if self._error:
            raise self._error
        return [self.roll.reports[index] for index in sorted(self.roll.reports)]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End at once what is still running, and wait for that."""
        self.close(now=True)
        if self._watching.is_alive():
            self._over.wait()

    # -- what a launcher says -----------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start all workers; each is to call `run_worker`."""
        for process in self.generation.processes:
            self._start(process, self.generation)
        if self.supervisor is not None:
            self.supervisor.crew.start_spares()

    @abstractmethod
    def _gone(self, index: int) -> str | None:
        """How a process ended; None: as far as is known it has not."""

    @abstractmethod
    def _end(self) -> None:
        """End all workers at once, those that have left too."""

    def _release(self) -> None:
        """Let go of everything, when all workers have left or were ended."""
        self.held.close()

    def _fault(self, reason: Reason, index: int) -> Exception:
        """The exception for what process `index` was the first to fail of."""
        if reason.user:
            return reason.error()
        return PeerLost(reason.line) if reason.kind == LOST else WorkerFailed(reason)

    # -- watching -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._until_all_left()
        except BaseException as error:
            self._error = error
        try:
            if self.left:
                self._end()
            self._release()
            self._forget_cuts()
        except BaseException as error:
            self._error = self._error or error
        if self.leads:
            self.pipeline.lost(self._error) if self._error else self.pipeline.leave()
        with suppress(RuntimeError):  # the store may have ended with a worker
            self.board.tell("over")
        self._over.set()

    def _until_all_left(self) -> None:
        """Until every process has left; raises what failed first."""
        end = None
        while self.left:
            self._wake.wait(self._look_s)
            self._wake.clear()
            lost: dict[int, str] = {}
            self.look(lost.__setitem__)
            told = self.board.told("failed")
            if told is None:
                if begun := self._begun:
                    self._go_on()
                # Streams do not begin without somebody who has just been lost.
                self._recover(lost)
                if not begun:
                    self._go_on()
            elif told["kind"] == STOPPED:
                raise Stopped(told["line"])
            elif end is None:
                end = time.monotonic() + GRACE_S
            elif time.monotonic() > end:
                break
        if told := self.board.told("failed"):
            index = told.pop("process")
            raise self._error or self._fault(Reason.from_dict(told), index)

    @property
    def _look_s(self) -> float:
        """How long to wait until workers are looked after again."""
        least = self.supervisor.look_s if self.supervisor is not None else POLL_S
        return least if self._begun else min(LOADING_POLL_S, least)

    def _recover(self, lost: dict[int, str]) -> None:
        """See to it that streams go on, or begin, where that is wanted."""
        if self.supervisor is None:
            return
        try:
            if not self._begun:
                self.supervisor.look_at_loading(lost)
                return
            self.supervisor.look(lost)
            # Whoever is in no generation leaves with the last of those who are.
            if not self.left & set(self.generation.processes):
                for process in self.left:
                    self.board.tell(f"leave/{process}")
        except Unrecovered as error:
            self._fail(Reason(str(error), LOST))

    # -- what the supervisor asks -------------------------------------------------------------------------------------

    @property
    def left(self) -> set[int]:
        """Processes that have not left."""
        return self.roll.left

    @property
    def over(self) -> bool:
        """Whether all is over."""
        return self._over.is_set()

    def wake(self) -> None:
        """Have the watching thread look now."""
        self._wake.set()

    def doze(self, seconds: float) -> None:
        """Wait so long, or until something happens."""
        self._wake.wait(seconds)
        self._wake.clear()

    def told(self, key: str) -> Any:
        """What was told on the board."""
        return self.board.told(key)

    def add(self, process: int, generation: Generation) -> None:
        """Start one more process, that begins with a generation.

        Raises:
            NoRoom: it cannot be started.
        """
        self.left.add(process)
        try:
            self._start(process, generation)
        except NoRoom:
            self.left.discard(process)
            raise

    def start_again(self, process: int) -> None:
        """Start a lost process of the first generation anew, under its number: the others wait for that one. Nothing
        that it has told counts any more.

        Raises:
            NoRoom: it cannot be started.
        """
        self.roll.again(process)
        self._start(process, self.generation)
        self.left.add(process)

    def dismiss(self, process: int) -> None:
        """A process has no place any more: it leaves."""
        self.board.tell(f"leave/{process}")

    def end(self, process: int, why: str) -> None:
        """End a process that does not do so itself."""
        self.left.discard(process)
        self.roll.lost[process] = why
        self._kill(process)

    def why(self, process: int) -> str:
        """How a lost process was lost, in a line."""
        return self.roll.lost[process]

    def become(self, generation: Generation, config: Config, plan: Plan) -> None:
        """This generation is the run's from now on."""
        self.generation, self.config, self.plan = generation, config, plan

    def refuse_end(self) -> None:
        """Raise what the run is to end of.

        Raises:
            Unrecovered: it was told to end, or something failed that is no loss.
        """
        if told := self.board.told("failed"):
            raise Unrecovered(told["line"])
        if self._ending:
            self._fail(Reason("ended at once", STOPPED))
            raise Unrecovered("the run was ended while a worker was being replaced")

    def look(self, lost: Callable[[int, str], object]) -> None:
        """See who has left, in good order or not, and whose pulse goes on.

        Args:
            lost: told of who is lost and how, where workers are recovered; else it ends the run.
        """
        self.roll.feel()
        settle_s = SHORTLY_S if self.supervisor is not None and self._begun else SETTLE_S
        for process, line, told in self.roll.departed(self._gone, settle_s, self.name):
            # Before anything is streamed a process that has told of its end would come to the same again.
            mishap = self._begun or not told
            if self.supervisor is not None and (mishap or process in self.supervisor.spares):
                lost(process, line)
            else:
                self._fail(Reason(line, LOST), process)

    def name(self, process: int) -> str:
        """What a process is called, or was."""
        index = self.generation.index(process)
        return f"process {process}" if index is None else f"worker {self.plan.members[index]}"

    def number(self, process: int) -> int | None:
        """The number that its machine has for a process; None: nothing was heard of it yet."""
        return self.roll.number(process)

    def _go_on(self) -> None:
        interrupted = self.board.told(INTERRUPT)
        if self._ending:
            self._fail(Reason("ended at once", STOPPED))
        elif not self._begun:
            if interrupted:
                self._fail(Reason("stopped before anything was streamed", STOPPED))
            elif all(self.board.told(f"loaded/{index}") for index in self.left):
                self._begin_now()
        elif interrupted and not self._draining:
            self._draining = True
            # In this order no stream can be opened in between that nobody stops.
            self.close()
            self.pipeline.stop()

    def _begin_now(self) -> None:
        self.pipeline.check_room()
        try:
            self._begin()
        except Exception as error:
            self._error = error
            self._fail(Reason.of(error, "the output folder"))
            return
        self._begun = True
        self.board.tell("begun", ONE_HOST if self.one_host else SEVERAL_HOSTS)
        if not self.one_host:
            with suppress(
                Abandoned, PeerLost, UserError
            ):  # each process finds the same, and the first to do so says it
                share_folder(self.board, self.config)

    def _fail(self, reason: Reason, index: int = DRIVER) -> None:
        self.board.first("failed", {"process": index} | reason.to_dict())
        self._wake.set()
