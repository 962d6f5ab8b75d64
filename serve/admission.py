"""Who is let in. Never one who would break what those have who are in already.

A model takes as many sessions as its plan keeps in time, less some headroom, and as its memory holds; models that
compute on this host's processors share them. Who finds no place waits in the model's queue, or is told when to come
again. While sessions report late chunks nobody is let in, whatever was measured at the start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from conf.schema.serve import ServeConfig
from serve.lateness import WINDOW_S, Lateness
from serve.limits import site
from serve.problems import Problem
from serve.waiting import Line, Place, Waiting

OWN_CORES = 0.25
"""Of the gateway itself: packets of some sessions, and what asks how it is."""
LEAST_RETRY_S = 1.0
TINY = 1e-9
"""5 * (1 - 0.8) is a little less than 1."""


def host_cores() -> float:
    """Processors of this host that its sessions may use."""
    return max(OWN_CORES, len(os.sched_getaffinity(0)) - OWN_CORES)


@dataclass
class _Model:
    """What is known of one model.

    Attributes:
        name: of the model.
        rate: sessions that its plan keeps in time.
        cores: processors that one session keeps busy here.
        room: sessions that memory holds; None: any number.
        lateness: of its chunks.
        line: who is in, and who waits.
    """

    name: str
    rate: float
    cores: float
    room: int | None
    lateness: Lateness
    line: Line = field(default_factory=Line)


class Admission:
    """Places for sessions. One thread asks it, the gateway's loop; nothing in it waits.

    Args:
        serve: the limits.
        clock: seconds, monotonic.
        cores: processors that all sessions together may use here; None: this host's.
        rejected: told (model, reason) of whoever is refused: `full`, `late`, `queue`, `too_many`, `draining`.

    Attributes:
        draining: nobody is let in any more.
    """

    def __init__(
        self,
        serve: ServeConfig,
        clock: Callable[[], float],
        cores: float | None = None,
        rejected: Callable[[str, str], None] = lambda model, reason: None,
    ):
        self.serve, self.clock, self.draining = serve, clock, False
        self.cores = host_cores() if cores is None else cores
        self.rejected = rejected
        self._models: dict[str, _Model] = {}

    def model(self, name: str, rate: float, cores: float = 0.0, room: int | None = None) -> None:
        """A model is served.

        Args:
            name: of the model.
            rate: sessions that its plan keeps in time: seconds of video made in a second.
            cores: seconds of a processor of this host that a second of one session takes; 0: it computes elsewhere.
            room: sessions that its memory holds; None: any number.
        """
        self._models[name] = _Model(name, rate, cores, room, Lateness(self.clock))

    # -- what there is ------------------------------------------------------------------------------------------------

    def capacity(self, name: str) -> int:
        """Sessions of a model that there may be at this moment, those that run among them."""
        model = self._models[name]
        running = len(model.line.places)
        if self._late(model):
            return running
        return max(running, min(self._most(model), running + self._spare(model)))

    def limit(self, name: str) -> tuple[int, str]:
        """Sessions of a model if no other had any, and what sets that: `rate`, `memory`, `cores` or `max_sessions`."""
        model = self._models[name]
        cores = inf if not model.cores else _whole(self._budget / model.cores)
        least, why = min((cores, "cores"), *self._limits(model))
        return int(least), why

    def running(self, name: str) -> int:
        """Sessions of a model that have a place."""
        return len(self._models[name].line.places)

    def waiting(self, name: str) -> int:
        """How many wait for one."""
        return len(self._models[name].line)

    def busy_since(self, name: str) -> float | None:
        """When the session began that has been in for the longest; None: there is none."""
        places = self._models[name].line.places if name in self._models else []
        return min((place.since for place in places), default=None)

    def late(self, name: str, seconds: float) -> None:
        """A session of a model has shown a chunk, so many seconds late; 0: it was in time."""
        self._models[name].lateness.add(seconds)

    # -- coming and going ---------------------------------------------------------------------------------------------

    def enter(self, name: str, caller: str, ends_s: float | None = None) -> Place:
        """Take a place at once.

        Args:
            name: of the model.
            caller: whose limit it counts for.
            ends_s: seconds from now at which the session ends at the latest; None: `serve.session_s`.

        Raises:
            Problem: `full`, `too_many` or `draining`, with when to come again.
        """
        model = self._known(name, caller)
        self.refresh()
        if len(model.line) or not self._free(model):
            self._refuse(model, "late" if self._late(model) else "full", self._when(model))
        return self._seat(model, caller, self._length(ends_s))

    def queue(
        self, name: str, caller: str, ends_s: float | None = None, changed: Callable[[], None] = lambda: None
    ) -> Waiting:
        """Take a place as soon as there is one: `place` of what is returned, which may have one already.

        Args:
            name, caller, ends_s: as `enter`; the session's time begins with its place.
            changed: told when its position changes and when it has a place; raises nothing.

        Raises:
            Problem: `full` (the queue, too), `too_many` or `draining`.
        """
        model = self._known(name, caller)
        self.refresh()
        waiting = Waiting(self, name, caller, self._length(ends_s), changed)
        if not len(model.line) and self._free(model):
            waiting.place = self._seat(model, caller, waiting.length_s)
        elif len(model.line) >= self.serve.queue:
            self._refuse(model, "queue", self._when(model))
        else:
            model.line.join(waiting)
        return waiting

    def refresh(self) -> None:
        """Give places that have become free by time alone: chunks are in time again. To be called now and then."""
        while not self.draining and (waiting := self._next()) is not None:
            line = self._models[waiting.model].line
            line.waiting.remove(waiting)
            waiting.place = self._seat(self._models[waiting.model], waiting.caller, waiting.length_s)
            waiting.changed()
            line.tell()

    def leave(self, place: Place) -> None:
        """A session has ended, and who is next in the queue has its place; nothing for one that has left."""
        if self._models[place.model].line.left(place, self.clock()):
            self.refresh()
            self._models[place.model].line.tell()

    def give_up(self, waiting: Waiting) -> None:
        """Who waits does so no more; a place that was given meanwhile is free again."""
        if waiting.place is not None:
            self.leave(waiting.place)
            return
        line = self._models[waiting.model].line
        if waiting in line.waiting:
            line.waiting.remove(waiting)
            self.refresh()  # others may have waited behind it for processors
            line.tell()

    def position(self, waiting: Waiting) -> int:
        """Of one who waits, 1 being the next; 0: it has a place, or waits no more."""
        return self._models[waiting.model].line.position(waiting)

    def wait_s(self, waiting: Waiting) -> float:
        """Seconds after which a place is to be expected, by how long sessions have lasted so far; 0: it has one."""
        model = self._models[waiting.model]
        position = model.line.position(waiting)
        if not position:
            return 0.0
        if not model.line.places:
            return self._when(model) * position  # other models have the processors
        return model.line.expected_s(position, self.clock(), self.serve.session_s)

    # -- rules --------------------------------------------------------------------------------------------------------

    def _known(self, name: str, caller: str) -> _Model:
        """The model, for a caller who may have one more session."""
        if name not in self._models:
            raise Problem("not_found", f"model={name[:80]} is not served here; GET /v1/models names those that are")
        model = self._models[name]
        if self.draining:
            self.rejected(name, "draining")
            raise Problem("draining", "the server is ending; open sessions elsewhere", self.serve.drain_s)
        own = [
            place for one in self._models.values() for place in one.line.places if site(place.caller) == site(caller)
        ]
        waits = sum(
            site(waiting.caller) == site(caller) for one in self._models.values() for waiting in one.line.waiting
        )
        if len(own) + waits >= self.serve.sessions_per_caller:
            self._refuse(model, "too_many", min((place.left_s for place in own), default=self.serve.lease_s))
        return model

    def _refuse(self, model: _Model, reason: str, retry_s: float) -> None:
        said = {
            "full": f"all places of model={model.name} are taken; come again, or wait with queue=true",
            "late": f"model={model.name} is late with the sessions that it has; come again",
            "queue": f"all places of model={model.name} are taken, and {self.serve.queue} wait; come again",
            "too_many": f"you have {self.serve.sessions_per_caller} sessions, the most for one caller; end one of them",
        }
        self.rejected(model.name, reason)
        kind = reason if reason == "too_many" else "full"
        raise Problem(kind, said[reason], max(LEAST_RETRY_S, retry_s))

    def _when(self, model: _Model) -> float:
        """Seconds after which who is refused may find a place."""
        if self._late(model):
            return WINDOW_S
        others = [one for one in self._models.values() if one is model or (model.cores and one.cores)]
        left = [place.left_s for one in others for place in one.line.places]
        return min(left, default=self.serve.lease_s)

    def _length(self, ends_s: float | None) -> float:
        return self.serve.session_s if ends_s is None else min(ends_s, self.serve.session_s)

    def _seat(self, model: _Model, caller: str, length_s: float) -> Place:
        return model.line.seat(Place(self, model.name, caller, self.clock(), length_s))

    def _next(self) -> Waiting | None:
        """Who gets the next place, if there is one. Who waits for processors alone is not overtaken by others that
        need some: a model of heavy sessions would else never have its turn."""
        short_of_cores = False
        firsts = (one.line.waiting[0] for one in self._models.values() if len(one.line))
        for waiting in sorted(firsts, key=attrgetter("number")):
            model = self._models[waiting.model]
            if self._late(model) or len(model.line.places) >= self._most(model) or (short_of_cores and model.cores):
                continue
            if self._spare(model) > 0:
                return waiting
            short_of_cores = True
        return None

    def _free(self, model: _Model) -> bool:
        """Whether there is a place for one who comes now: nobody of any model waits for the processors it needs."""
        starved = model.cores and any(
            len(one.line) and one.cores and len(one.line.places) < self._most(one) and not self._late(one)
            for one in self._models.values()
        )
        return not starved and self.capacity(model.name) > len(model.line.places)

    def _late(self, model: _Model) -> bool:
        """Whether chunks come late, its own or those of others on the same processors."""
        return any(
            one.lateness.late for one in self._models.values() if one is model or (model.cores > 0 and one.cores > 0)
        )

    @property
    def _budget(self) -> float:
        return self.cores * (1 - self.serve.headroom)

    def _spare(self, model: _Model) -> float:
        """Sessions of it for which there are processors."""
        if not model.cores:
            return inf
        used = sum(len(one.line.places) * one.cores for one in self._models.values())
        return _whole((self._budget - used) / model.cores)

    def _most(self, model: _Model) -> float:
        """Sessions of a model, however many processors there were."""
        return min(limit for limit, _ in self._limits(model))

    def _limits(self, model: _Model) -> Iterator[tuple[float, str]]:
        yield _whole(model.rate * (1 - self.serve.headroom)), "rate"
        yield inf if model.room is None else max(0, model.room), "memory"
        yield inf if self.serve.most is None else self.serve.most, "max_sessions"


def _whole(streams: float) -> int:
    return max(0, math.floor(streams + TINY)) if streams < inf else 10**9
