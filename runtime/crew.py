"""The processes of a run, generation for generation: those that compute, spares, and who is started for the next.

It finds out who is lost, ends those of whom nothing more will come, and starts others in their places. What that means
for streams is for the supervisor to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from conf.errors import UserError
from runtime.generations import Generation
from runtime.pulse import key
from runtime.reasons import Reason
from runtime.symptoms import Symptoms

if TYPE_CHECKING:
    from runtime.running import Running

log = logging.getLogger(__name__)

LOOK_S = 0.02
"""How often what is waited for is looked at."""


class NoRoom(Exception):  # noqa: N818  an event
    """No other process can be started. One line: why."""


class Lost(Exception):  # noqa: N818  an event
    """A process was lost while something was waited for, or could not be started.

    Attributes:
        no_room: whether another would have no room, either.
        young: how many were lost that had not loaded.
        processes: who was lost, and how.
    """

    def __init__(self, line: str, no_room: bool = False, young: int = 0, processes: dict[int, str] | None = None):
        super().__init__(line)
        self.no_room, self.young, self.processes = no_room, young, processes or {}


class Crew:
    """Who is there.

    Args:
        running: the run; its launcher starts and ends processes.
        clock: seconds.

    Attributes:
        spares: processes that have loaded what any place may need, and wait for one.
        symptoms: by which it is told who is lost.
    """

    def __init__(self, running: Running, clock: Callable[[], float]):
        self._run, self._clock = running, clock
        self.spares: set[int] = set()
        self.symptoms = Symptoms.of(running.config.launcher)
        self._next_process = running.plan.processes
        self._mute: set[int] = set()
        """Processes that never said anything."""
        self._missing_since: dict[int, float] = {}
        """Of processes that were silent or stuck: since when nothing came of them, which was before they were found."""

    @property
    def there(self) -> list[int]:
        """Processes that are there for another plan."""
        run = self._run
        return [p for p in (*run.generation.processes, *self.spares) if p in run.left]

    def since(self, lost: Iterable[int], seen: float) -> float:
        """Since when streams stand still for want of processes: who is silent or stuck was so before that was seen."""
        return min([seen, *(self._missing_since.get(process, seen) for process in lost)])

    # -- who is lost --------------------------------------------------------------------------------------------------

    def sick(self, cold: bool = False) -> dict[int, str]:
        """End those who say nothing, or stand still; returns them, with how that is said."""
        run, found, now = self._run, {}, self._clock()
        for process, symptom in self.symptoms.look({p: run.told(key(p)) for p in self.there}, now, cold).items():
            found[process] = f"{run.name(process)} is lost ({symptom})"
            self._missing_since[process] = now - symptom.missing_s
            if run.told(key(process)) is None:
                self._mute.add(process)
            run.end(process, found[process])
            self.symptoms.forget(process)
        return found

    def forget(self, process: int) -> None:
        """A process begins anew: nothing that was heard of it counts."""
        self._mute.discard(process)
        self.symptoms.forget(process)

    def wait(self, test: Callable[[], bool]) -> None:
        """Wait until `test` holds.

        Raises:
            Lost: a process that is a member of the generation, or is to be one, is lost meanwhile.
        """
        run = self._run
        while not test():
            lost: dict[int, str] = {}
            run.look(lost.__setitem__)
            lost |= self.sick()
            self.spares -= set(lost)
            run.refuse_end()
            if lost:
                young = [p for p in lost if not run.told(f"loaded/{p}")]
                raise Lost("; ".join(lost.values()), any(map(self._has_no_room, young)), len(young), lost)
            run.doze(LOOK_S)

    def _has_no_room(self, process: int) -> bool:
        """Whether a process was lost that cannot be: nothing was heard of it for long, or it lacked what it needs."""
        raised = self._run.told(f"raised/{process}")
        return process in self._mute or (raised is not None and Reason.from_dict(raised).user)

    # -- who is started -----------------------------------------------------------------------------------------------

    def start_spares(self) -> None:
        """Have as many as are wanted.

        Raises:
            UserError: there is no room for them, and nothing has begun.
        """
        run, wanted = self._run, self._run.config.launcher.spares
        while len(self.spares) > wanted:
            run.dismiss(self.spares.pop())
        while len(self.spares) < wanted:
            self.spares.add(process := self._numbered())
            try:
                run.add(process, run.generation)
            except NoRoom as error:
                self.spares.discard(process)
                if not run.begun:
                    raise UserError(f"launcher.spares={wanted}", str(error), "ask for fewer") from error
                log.warning("there is no room for another spare: %s", error)
                return

    def without(self, lost: Iterable[int]) -> set[int]:
        """Do without spares that were lost; returns them."""
        gone = self.spares & set(lost)
        self.spares -= gone
        for process in gone:
            log.warning("%s: it was a spare", self._run.why(process))
        return gone

    def filled(self, generation: Generation, seats: list[int | None]) -> list[int]:
        """Start who is missing, and set them in their seats; returns them.

        Raises:
            Lost: there is no room for one. Those that were started before it are spares.
        """
        started, missing = [], [i for i, p in enumerate(seats) if p is None]
        if not missing:
            return []
        taken = [p if p is not None else -1 for p in seats]
        for i in missing:
            taken[i] = seats[i] = process = self._numbered()
            started.append(process)
        whole = replace(generation, processes=tuple(taken))
        for process in started:
            try:
                self._run.add(process, whole)
            except NoRoom as error:
                self.spares |= set(started) & self._run.left
                raise Lost(str(error), no_room=True) from error
        return started

    def _numbered(self) -> int:
        """The number of a new process."""
        process, self._next_process = self._next_process, self._next_process + 1
        return process
