"""Who sees to it that streams go on: a lost process, or another plan, makes the next generation of the run.

It holds no tensors. The running generation is ended on every process that is left of it; the next is made of these, of
spares, and of processes that are started now; and every stream is opened again from its newest cut that is whole. What
is lost meanwhile begins that once more. All of it is done in the thread that watches over the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from conf.errors import UserError
from conf.schema import Config, PlanConfig
from runtime.crew import LOOK_S, Crew, Lost, NoRoom
from runtime.generations import Generation, seated
from runtime.orders import Cut, Halt, Open, Prepare
from runtime.reasons import Reason

if TYPE_CHECKING:
    from runtime.running import Running

log = logging.getLogger(__name__)

MOST = 8
"""Generations in a row that may be lost before anything was put out."""
YOUNG = 2
"""Processes that may be lost while they load before a plan is taken that needs none of them."""
CUT_S, OUTSIDE_S = 5.0, 1.5
"""Longest wait for the cut of a planned change: without it more is made again. None becomes whole while an output
waits for somebody outside, maybe for whoever asked for the change: that is seen by how long it has waited."""
NO_CUT = {"chunk": 0}
"""Where a stream goes on that has no whole cut."""
ORDERED = "another plan was ordered"
"""Why a generation begins that nobody's loss has brought about."""
SEEN_S = 10.0
"""Longest wait for streams to be seen to go on."""
RECORDS = 256
"""Generations that are told of in a report: the latest."""


@dataclass
class Wanted:
    """Another plan, asked for.

    Attributes:
        plan: its settings.
        done: set when it runs, or cannot.
        number: of its generation.
        error: why it cannot run.
    """

    plan: PlanConfig
    done: threading.Event = field(default_factory=threading.Event)
    number: int = -1
    error: Exception | None = None


class Plans(Protocol):
    """Says which other plans a run may have (`launch.replanning`)."""

    def changed(self, config: Config, changes: dict[str, Any]) -> PlanConfig:
        """The plan that the running one is to become, by some of its settings. Raises UserError."""
        ...

    def fewer(self, config: Config, workers: int, streams: int | None = None) -> Any:
        """The best plan of at most so many processes, as `config`; None: there is none."""
        ...

    def speed(self, config: Config, first: Config) -> float:
        """How fast the plan of a run is, of the one that it began with."""
        ...


class Unrecovered(Exception):  # noqa: N818  an event to report
    """The streams cannot go on. One line: why."""


class Supervisor:
    """Makes the generations of a run.

    Args:
        running: the run; its launcher starts and ends processes.
        clock: seconds.

    Attributes:
        records: of every generation but the first, for the report.
        crew: the run's processes.
    """

    def __init__(self, running: Running, clock: Callable[[], float] = time.monotonic):
        self._run, self._clock = running, clock
        self.records: list[dict[str, Any]] = []
        self._wanted: list[Wanted] = []
        self._lock = threading.Lock()
        self.crew, self._first = Crew(running, clock), running.config
        self._unseen: dict[int, str] = {}
        """Processes that were lost while another plan was prepared."""
        self._open: dict[str, Any] | None = None
        """The record of a generation whose streams have not all been seen to go on."""
        self._resumed: set[int] = set()
        self._in_vain, self._stands = 0, 0
        """Generations that were lost before anything was put out; and the number of the latest that was told."""
        self._missed_at: float | None = None
        self._told_plan = running.config.plan
        """Of which whoever looks on knows how fast it is."""
        self.plans: Plans
        """Which other plans there are; set by whoever starts the run."""
        self._again_once: set[int] = set()
        """Processes that were started a second time, before anything was streamed."""

    @property
    def spares(self) -> set[int]:
        """Processes that wait for a place."""
        return self.crew.spares

    # -- what is asked for --------------------------------------------------------------------------------------------

    def change(self, plan: dict[str, Any]) -> int:
        """Have another plan; returns the number of its generation once it runs. From any thread but the watching one.

        Raises:
            UserError: there is no such plan, or the streams cannot go on by it.
        """
        run = self._run
        changed = self.plans.changed(run.config, plan)
        Generation(0, asdict(changed), ()).of(run.config)
        wanted = Wanted(changed)
        with self._lock:
            self._wanted.append(wanted)
        run.wake()
        while not wanted.done.wait(1.0):
            if run.over:
                raise UserError(f"plan={plan}", "the run has ended", "start another one")
        if wanted.error is not None:
            raise wanted.error
        return wanted.number

    # -- the watching thread ------------------------------------------------------------------------------------------

    @property
    def look_s(self) -> float:
        """How often it wants to look."""
        return self.crew.symptoms.look_s

    def look_at_loading(self, lost: dict[int, str]) -> None:
        """See to what has happened before streams go: a process that is lost is started again, once. Nothing is told
        to it that it would have missed.

        Raises:
            Unrecovered: one was lost twice, or cannot be started.
        """
        run = self._run
        lost = lost | self.crew.sick(cold=True)
        self._spare_lost(lost)
        for process, why in lost.items():
            if process not in run.generation.processes:
                continue
            if process in self._again_once:
                raise Unrecovered(f"{why}, as before when it loaded")
            self._again_once.add(process)
            self.crew.forget(process)
            log.warning("%s, before anything was streamed; it is started again", why)
            try:
                run.start_again(process)
            except NoRoom as error:
                raise Unrecovered(f"{why}; {error}") from error

    def look(self, lost: dict[int, str]) -> None:
        """See to what has happened.

        Args:
            lost: processes that have been found to be gone since this was called last, and how.

        Raises:
            Unrecovered: the streams cannot go on.
        """
        run, began = self._run, self._clock()
        self._note()
        lost, self._unseen = self._unseen | lost | self.crew.sick(), {}
        gone = {p: why for p, why in lost.items() if p in run.generation.processes}
        if gone:
            self.crew.spares -= set(lost)
        else:
            self._spare_lost(lost)
        if self._over:
            for why in gone.values():
                log.warning("%s, when all streams had ended", why)
        elif gone:
            why = "; ".join(gone.values())
            log.warning("%s; its streams go on from their newest cuts", why)
            self._again(why, run.config.plan, self.crew.since(gone, began))
            return
        elif self._missed_at is not None and began - self._missed_at > run.config.launcher.silent_s:
            self._again("workers miss each other, and none is lost", run.config.plan, self._missed_at)
            return
        with self._lock:
            wanted = self._wanted.pop(0) if self._wanted else None
        if wanted is not None:
            try:
                self._change(wanted, began)
                wanted.number = run.generation.number
            except UserError as error:
                wanted.error = error
            except Unrecovered as error:
                wanted.error = UserError("plan", str(error), "look at the log")
                raise
            finally:
                wanted.done.set()
            # Who was lost while others loaded for it was seen there, and is lost to the streams all the same.
            if not self._over and (missing := [p for p in run.generation.processes if p not in run.left]):
                names = ", ".join(run.name(process) for process in missing)
                why = f"{names} was lost while another plan was prepared"
                self._again(why, run.config.plan, self.crew.since(missing, began))

    def _spare_lost(self, lost: Iterable[int]) -> None:
        """Do without spares that were lost. Others take their places, unless they did not come as far as that."""
        run, gone = self._run, self.crew.without(lost)
        if run.begun and self._open is None and not self._over and all(run.told(f"loaded/{p}") for p in gone):
            self.crew.start_spares()

    @property
    def _over(self) -> bool:
        """Whether nothing goes on any more, and workers leave."""
        pipeline = self._run.pipeline
        return pipeline.closed and not pipeline.streams

    def _note(self) -> None:
        """Take in who misses whom, and which streams go on."""
        for told in self._run.pipeline.missed():
            if told["event"] == "shown":
                self._resumed.add(told["stream"])
                self._in_vain = 0
            elif self._missed_at is None and told["generation"] == self._run.generation.number:
                self._missed_at = self._clock()
                log.warning("process %d: %s", told["process"], told["line"])
        if self._open is not None and self._go_on:
            now, record = self._clock(), self._open
            self._open = None
            record["replay_s"] = round(now - record.pop("ready"), 3)
            record["frozen_s"] = round(now - record.pop("began"), 3)
            # What was ordered is no trouble.
            level = logging.INFO if record["why"] == ORDERED else logging.WARNING
            workers = f"{record['workers']} worker{'s' * (record['workers'] > 1)}"
            log.log(level, "plan %s of %s: streams go on after %.2f s", record["plan"], workers, record["frozen_s"])
            self._run.pipeline.told({"frozen": False} | record | self._faster())
            self.crew.start_spares()

    @property
    def _go_on(self) -> bool:
        """Whether all streams have been seen to go on. One that waits for its source may never be."""
        seen = {order.stream for order in self._run.pipeline.streams} <= self._resumed
        return seen or self._clock() - self._open["ready"] > SEEN_S

    def _faster(self) -> dict[str, Any]:
        """How fast the plan is, of the one that the run began with, and what its workers have for streams."""
        run = self._run
        if run.config.plan == self._told_plan:
            return {}
        self._told_plan = run.config.plan
        rooms = (run.told(f"room/{worker}") for worker in range(run.plan.workers))
        with suppress(UserError):  # it cannot be told
            return {"speed": self.plans.speed(run.config, self._first), "rooms": [room for room in rooms if room]}
        return {}

    def _change(self, wanted: Wanted, began: float) -> None:
        """A planned change: everything is loaded, then cut, then turned.

        Raises:
            UserError: a process cannot load what it needs: the streams go on as they were.
        """
        run = self._run
        number, settings = run.generation.number + 1, asdict(wanted.plan)
        generation = Generation(number, settings, ())
        _, plan = generation.of(run.config)
        seats = seated(plan, run.plan, run.generation.processes, run.left, self.crew.spares)
        stay = {p: i for i, p in enumerate(seats) if p is not None}
        for process, index in stay.items():
            if process not in self.crew.spares:
                run.board.forget(f"prepared/{number}/{process}")  # of an order before, which was refused
                run.pipeline.order_now(Prepare(number, wanted.plan, index), [process])
        missing = [i for i, p in enumerate(seats) if p is None]
        started: list[int] = []
        try:
            started = self.crew.filled(generation, seats)
            self.crew.wait(
                lambda: (
                    self._over
                    or (
                        all(run.told(f"loaded/{p}") for p in started)
                        and all(
                            run.told(f"prepared/{number}/{p}") is not None for p in stay if p not in self.crew.spares
                        )
                    )
                )
            )
        except Lost as lost:
            for process in (seats[i] for i in missing):
                self.crew.spares.discard(process)
                if process in run.left:
                    run.dismiss(process)
            self._unseen |= lost.processes
            rule = str(lost) if lost.no_room else f"a worker was lost meanwhile ({lost})"
            raise UserError(
                f"plan={settings['name']}", rule, "ask for fewer workers" if lost.no_room else "order it again"
            ) from None
        for process in stay:
            if told := run.told(f"prepared/{number}/{process}"):
                for one in started:
                    run.dismiss(one)
                reason = Reason.from_dict(told)
                raise UserError(f"plan={settings['name']}", reason.line, "the streams go on by the plan before")
        self._cut()
        if self._over:
            for process in started:
                run.dismiss(process)
            raise UserError(f"plan={settings['name']}", "all streams have ended", "open another one")
        self._again(ORDERED, wanted.plan, self._clock(), seats)

    def _cut(self) -> None:
        """Have every stream cut now, so that little is to be made again."""
        run = self._run
        streams = [order.stream for order in run.pipeline.streams]
        before = {stream: (run.told(f"whole/{stream}") or NO_CUT)["chunk"] for stream in streams}
        run.pipeline.order_now(Cut(), run.generation.processes)
        end = self._clock() + CUT_S

        def cut() -> bool:
            now = {stream: (run.told(f"whole/{stream}") or NO_CUT)["chunk"] for stream in streams}
            live = {order.stream for order in run.pipeline.streams}
            whole = all(now[s] > before[s] for s in streams if s in live)
            outside = (self.crew.symptoms.outside_s(p, self._clock()) for p in run.generation.processes)
            return whole or self._clock() > end or max(outside) > OUTSIDE_S

        with suppress(Lost):  # it is lost in the next generation, too
            self.crew.wait(cut)

    def _again(self, why: str, settings: PlanConfig, began: float, seats: list[int | None] | None = None) -> None:
        """Make the next generation, and more of them until one stands."""
        run, first, young = self._run, True, 0
        self._missed_at = None
        while True:
            self._in_vain += 1
            if self._in_vain > MOST:
                raise Unrecovered(f"{why}; {MOST} generations in a row were lost before anything was put out")
            number = run.generation.number + 1
            if first:
                run.pipeline.freeze(number, why)
            first = False
            try:
                self._turn(number, why, settings, began, seats)
                return
            except Lost as lost:
                log.warning("%s, before generation %d stood", lost, number)
                why, seats, young = f"{why}; {lost}", None, young + lost.young
                if lost.no_room or (young >= YOUNG and self.crew.there):
                    settings, young = self._fewer(why), 0

    def _fewer(self, why: str) -> PlanConfig:
        """The best plan for the processes that are left, since there is no room for another.

        Raises:
            Unrecovered: there is none.
        """
        run = self._run
        left = self.crew.there
        found = self.plans.fewer(run.config, len(left), len(run.pipeline.streams)) if left else None
        if found is None:
            rule = f"no plan fits on the {len(left)} processes that are left, and no other can be started"
            raise Unrecovered(f"{why}; {rule}")
        log.warning("no other process can be started: the streams go on by plan=%s on %d", found.config.name, len(left))
        return found.config

    def _turn(self, number: int, why: str, settings: PlanConfig, began: float, seats: list[int | None] | None) -> None:
        run = self._run
        detected = self._clock()
        self._halt(number)
        generation = Generation(number, asdict(settings), ())
        config, plan = generation.of(run.config)
        if seats is None or any(p is not None and p not in run.left for p in seats):
            seats = seated(plan, run.plan, run.generation.processes, run.left, self.crew.spares)
        before = set(run.generation.processes)
        self.crew.filled(generation, seats)
        generation = replace(generation, processes=tuple(seats))
        # Whatever happens from here on happens to this generation.
        run.become(generation, config, plan)
        self.crew.spares -= set(seats)
        self.crew.wait(lambda: all(run.told(f"loaded/{p}") for p in seats))
        loaded = self._clock()
        run.pipeline.settle()
        cuts = {order.stream: run.told(f"whole/{order.stream}") for order in run.pipeline.streams}
        generation.tell(run.board)
        self._stands = number
        run.pipeline.go_on(generation, plan, lambda order: self._opened(order, cuts.get(order.stream)))
        for process in before - set(seats):
            if process in run.left:
                run.dismiss(process)
        self.crew.wait(lambda: all(run.told(f"ready/{number}/{p}") for p in seats))
        ready = self._clock()
        self._resumed = set()
        self._open = {
            "number": number,
            "plan": config.plan.name,
            "workers": plan.processes,
            "cut": {order.config.id: (cuts.get(order.stream) or NO_CUT)["chunk"] for order in run.pipeline.streams},
            "why": why,
            "detect_s": round(detected - began, 3),
            "load_s": round(loaded - detected, 3),
            "connect_s": round(ready - loaded, 3),
            "began": began,
            "ready": ready,
        }
        self.records.append(self._open)
        del self.records[:-RECORDS]

    def _opened(self, order: Open, cut: dict[str, Any] | None) -> Open:
        """A stream's order, as it goes on from its newest whole cut."""
        if cut is None:
            return order
        keep = replace(order.keep, cut=order.keep.journal, first=cut["chunk"], frames=cut["frames"])
        return replace(order, keep=keep)

    def _halt(self, number: int) -> None:
        """End the running generation on every process that is left of it. Who does not answer is lost, too.

        A pass that is under way comes to its end first, and may take as long as at any other time. While one is, others
        may wait for it.
        """
        run = self._run
        if run.generation.number > self._stands:
            return  # it was lost before anybody was told of it
        processes = [p for p in run.generation.processes if p in run.left]
        run.pipeline.order_now(Halt(number), processes)
        end = self._clock() + run.config.launcher.silent_s
        while waiting := [p for p in processes if p in run.left and not run.told(f"halted/{number - 1}/{p}")]:
            run.look(lambda process, why: self.crew.spares.discard(process))
            self.crew.spares -= self.crew.sick().keys()
            if any(self.crew.symptoms.at_pass(p) for p in waiting):
                end = self._clock() + run.config.launcher.silent_s
            elif self._clock() > end:
                for process in waiting:
                    log.warning("process %d does not halt: it is ended", process)
                    run.end(process, "it did not halt")
                    self.crew.spares.discard(process)
                return
            run.doze(LOOK_S)
