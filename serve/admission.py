"""Who is let in. Never one who would break what those have who are in already.

There is a budget of everything that sessions take (`serve.resources`): of each plan's time, of this host's processors
and of other devices, less some headroom, and of the bytes of each memory. Models that compute on one device, or whose
streams are in one memory, share it. Who finds no place waits in the model's queue, or is told when to come again. While
sessions report late chunks nobody is let in, whatever was measured at the start.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter

from conf.schema.serve import ServeConfig
from serve.lateness import WINDOW_S, Lateness
from serve.limits import site
from serve.problems import Problem
from serve.resources import CORES, MEMORY, Key, Memory, Needs, bytes_free, whole
from serve.waiting import Line, Place, Waiting, expected_s

OWN_CORES = 0.25
"""Of the gateway itself: packets of some sessions, and what asks how it is."""
LEAST_RETRY_S = 1.0
TINY = 1e-9
"""Of a budget: a fifth is a little more than 1 - 0.8."""
MOST = 10_000
"""Sessions of a model, whatever there is for them."""


def host_cores() -> float:
    """Processors of this host that its sessions may use."""
    return max(OWN_CORES, len(os.sched_getaffinity(0)) - OWN_CORES)


@dataclass
class _Model:
    """What is known of one model.

    Attributes:
        name: of the model.
        needs: what its sessions take.
        measured: likewise, as it was measured, under the plan of then.
        lateness: of its chunks.
        line: who is in, and who waits.
    """

    name: str
    needs: Needs
    measured: Needs
    lateness: Lateness
    line: Line = field(default_factory=Line)

    def taken(self, sessions: int) -> dict[Key, float]:
        """What so many sessions of it take."""
        return self.needs.taken(self.name, sessions)

    @property
    def keys(self) -> set[Key]:
        """All that they take something of."""
        return set(self.taken(0))


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

    def model(
        self,
        name: str,
        rate: float,
        shares: Mapping[str, float] | None = None,
        memory: Sequence[Memory] = (),
        most: int | None = None,
    ) -> None:
        """A model is served.

        Args:
            name: of the model.
            rate, shares, memory, most: as `serve.resources.Needs`.
        """
        needs = Needs(rate, shares or {}, memory, most)
        self._models[name] = _Model(name, needs, needs, Lateness(self.clock))

    def planned(self, name: str, speed: float, memory: Sequence[Memory] | None = None) -> None:
        """A model has another plan, so many times as fast as the one that it was measured with.

        Args:
            memory: of its workers; None: as it was then.
        """
        self._models[name].needs = self._models[name].measured.at(speed, memory)
        self.refresh()

    # -- what there is ------------------------------------------------------------------------------------------------

    def capacity(self, name: str) -> int:
        """Sessions of a model that there may be at this moment, those that run among them."""
        model = self._models[name]
        running = len(model.line.places)
        return running if self._late(model) else running + self._spare(model)

    def limit(self, name: str) -> tuple[int, str]:
        """Sessions of a model if no other had any, and what sets that: `rate`, `memory`, `cores`, `devices` (that
        others compute on as well), `streams` (that a pipeline opens) or `max_sessions`."""
        model = self._models[name]
        limits = [
            (whole(MOST, lambda n, key=key: model.taken(n)[key] <= self._budget(key)), key[0]) for key in model.taken(0)
        ]
        limits.append((self._most(model), "streams" if self.serve.most is None else "max_sessions"))
        return min(limits, key=itemgetter(0))

    def keeps(self, name: str) -> int:
        """Sessions of a model that its plan makes as fast as they are watched, with nothing to spare."""
        return int(self._models[name].needs.rate + TINY)

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
            self._refuse(model, "late" if self._late(model) else "full", self._expected_s(model, len(model.line) + 1))
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
            self._refuse(model, "queue", self._expected_s(model, len(model.line) + 1))
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
            self.refresh()  # others may have waited behind it for what both need
            line.tell()

    def position(self, waiting: Waiting) -> int:
        """Of one who waits, 1 being the next; 0: it has a place, or waits no more."""
        return self._models[waiting.model].line.position(waiting)

    def wait_s(self, waiting: Waiting) -> float:
        """Seconds after which a place is to be expected, by how long sessions have lasted so far; 0: it has one."""
        model = self._models[waiting.model]
        position = model.line.position(waiting)
        return self._expected_s(model, position) if position else 0.0

    def full(self, name: str) -> Problem:
        """What one is told whose stream its pipeline has no room for."""
        model = self._models[name]
        return self._refusal(model, "full", self._expected_s(model, 1))

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
            lengths = model.line.lengths
            self._refuse(model, "too_many", expected_s(own, lengths, 1, self.clock(), self.serve.lease_s))
        return model

    def _refuse(self, model: _Model, reason: str, retry_s: float) -> None:
        raise self._refusal(model, reason, retry_s)

    def _refusal(self, model: _Model, reason: str, retry_s: float) -> Problem:
        said = {
            "full": f"all places of model={model.name} are taken; come again, or wait with queue=true",
            "late": f"model={model.name} is late with the sessions that it has; come again",
            "queue": f"all places of model={model.name} are taken, and {self.serve.queue} wait; come again",
            "too_many": f"you have {self.serve.sessions_per_caller} sessions, the most for one caller; end one of them",
        }
        self.rejected(model.name, reason)
        kind = reason if reason == "too_many" else "full"
        return Problem(kind, said[reason], max(LEAST_RETRY_S, retry_s))

    def _expected_s(self, model: _Model, position: int) -> float:
        """Seconds after which there is to be a place for who is so far back in the queue, or would be."""
        late = WINDOW_S if self._late(model) else 0.0
        position -= self._spare(model) if late else 0
        if position <= 0:
            return late
        lines = [model.line]
        if not self._own(self._short(model)) and len(model.line.places) < self._most(
            model
        ):  # others have what it needs
            lines = [one.line for one in self._models.values() if one is model or one.keys & model.keys]
        places = [place for line in lines for place in line.places]
        longest_s = self.serve.session_s if places else self.serve.lease_s
        return max(late, expected_s(places, model.line.lengths, position, self.clock(), longest_s))

    def _length(self, ends_s: float | None) -> float:
        return self.serve.session_s if ends_s is None else min(ends_s, self.serve.session_s)

    def _seat(self, model: _Model, caller: str, length_s: float) -> Place:
        return model.line.seat(Place(self, model.name, caller, self.clock(), length_s))

    def _next(self) -> Waiting | None:
        """Who gets the next place, if there is one."""
        return next((waiting for waiting, short in self._firsts() if not short), None)

    def _firsts(self) -> Iterable[tuple[Waiting, set[Key]]]:
        """The first of every queue that may have a place as soon as there is enough, in the order of coming, each with
        what there is not enough of. Who waits only for what models share is not overtaken by others that need some of
        it: a model of heavy sessions would else never have its turn."""
        promised: set[Key] = set()
        firsts = (one.line.waiting[0] for one in self._models.values() if len(one.line))
        for waiting in sorted(firsts, key=attrgetter("number")):
            model = self._models[waiting.model]
            short = self._short(model)
            if self._late(model) or len(model.line.places) >= self._most(model) or self._own(short):
                continue
            yield waiting, short | (promised & model.keys)
            promised |= short

    def _free(self, model: _Model) -> bool:
        """Whether there is a place for one who comes now: nobody of any model waits for what it needs."""
        promised = {key for _, short in self._firsts() for key in short}
        return not promised & model.keys and self.capacity(model.name) > len(model.line.places)

    def _late(self, model: _Model) -> bool:
        """Whether chunks come late, its own or those of others on the same devices."""
        devices = {key for key in model.keys if key[0] != MEMORY}
        return any(one.lateness.late for one in self._models.values() if devices & one.keys)

    def _most(self, model: _Model) -> int:
        """Sessions of a model, whatever there is for them."""
        return min(limit for limit in (self.serve.most, model.needs.most, MOST) if limit is not None)

    def _spare(self, model: _Model) -> int:
        """Sessions of it for which there is enough of everything, beside those that run."""
        used, running = self._used(), len(model.line.places)
        return whole(max(0, self._most(model) - running), lambda more: not self._short(model, more, used))

    def _short(self, model: _Model, more: int = 1, used: Mapping[Key, float] | None = None) -> set[Key]:
        """What there is not enough of for so many more sessions of a model."""
        used, running = self._used() if used is None else used, len(model.line.places)
        before, after = model.taken(running), model.taken(running + more)
        return {key for key in after if used[key] - before[key] + after[key] > self._budget(key)}

    def _own(self, keys: set[Key]) -> bool:
        """Whether some of it is one model's own: no other gives it free."""
        return any(sum(key in one.keys for one in self._models.values()) == 1 for key in keys)

    def _used(self) -> Counter[Key]:
        """What all sessions take."""
        found: Counter[Key] = Counter()
        for one in self._models.values():
            found.update(one.taken(len(one.line.places)))
        return found

    def _budget(self, key: Key) -> float:
        """What there is of something for sessions."""
        kind, name = key
        if kind == MEMORY:
            return bytes_free([one for model in self._models.values() for one in model.needs.memory])[name]
        return (self.cores if key == (CORES, CORES) else 1.0) * (1 - self.serve.headroom) + TINY
