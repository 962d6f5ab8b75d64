"""Places of a model, and the queue of those who wait for one."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import count
from math import inf
from typing import Protocol

LENGTHS = 64
"""Sessions whose length is remembered, for what is to be expected of others."""
_numbers = count()


class Keeper(Protocol):
    """Who gives places and takes them back (`serve.admission.Admission`)."""

    clock: Callable[[], float]

    def leave(self, place: Place) -> None: ...

    def give_up(self, waiting: Waiting) -> None: ...

    def position(self, waiting: Waiting) -> int: ...

    def wait_s(self, waiting: Waiting) -> float: ...


class Place:
    """A session's place.

    Attributes:
        model: its name.
        caller: whose it is.
        since, ends: moments of the clock: when it was given, when it is free again at the latest. Who knows better, as
            when a session waits for a viewer to come back, sets `ends`.
    """

    def __init__(self, keeper: Keeper, model: str, caller: str, since: float, length_s: float):
        self._keeper, self.model, self.caller = keeper, model, caller
        self.since, self.ends = since, since + length_s

    @property
    def left_s(self) -> float:
        """Seconds until it is free at the latest."""
        return max(0.0, self.ends - self._keeper.clock())

    def leave(self) -> None:
        """The session has ended; a second time this does nothing."""
        self._keeper.leave(self)


class Waiting:
    """Who waits for a place.

    Attributes:
        number: in the order of coming, of all models.
        model, caller: whose place it will be.
        length_s: how long the session may last once it has one.
        place: that it was given; None: it still waits.
        changed: told when `position` or `place` has changed.
    """

    def __init__(self, keeper: Keeper, model: str, caller: str, length_s: float, changed: Callable[[], None]):
        self._keeper, self.number = keeper, next(_numbers)
        self.model, self.caller, self.length_s, self.changed = model, caller, length_s, changed
        self.place: Place | None = None

    @property
    def position(self) -> int:
        """1: the next; 0: it has a place, or has left."""
        return self._keeper.position(self)

    @property
    def wait_s(self) -> float:
        """Seconds after which a place is to be expected."""
        return self._keeper.wait_s(self)

    def leave(self) -> None:
        """Wait no more; a place that it has been given is free again."""
        self._keeper.give_up(self)


class Line:
    """One model's places and queue.

    Attributes:
        places: taken ones, in the order in which they were.
        waiting: in order.
        lengths: of the last sessions that have ended, in seconds.
    """

    def __init__(self):
        self.places: list[Place] = []
        self.waiting: list[Waiting] = []
        self.lengths: deque[float] = deque(maxlen=LENGTHS)
        self._told: dict[Waiting, int] = {}
        """Positions as those who wait were told."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self.waiting)

    def join(self, waiting: Waiting) -> None:
        """One more waits, behind all others."""
        self.waiting.append(waiting)
        self._told[waiting] = len(self.waiting)

    def seat(self, place: Place) -> Place:
        """A place is taken."""
        self.places.append(place)
        return place

    def left(self, place: Place, now: float) -> bool:
        """A place is free again; returns whether it was taken."""
        if place not in self.places:
            return False
        self.places.remove(place)
        self.lengths.append(now - place.since)
        return True

    def position(self, waiting: Waiting) -> int:
        """1: the next; 0: it does not wait."""
        return self.waiting.index(waiting) + 1 if waiting in self.waiting else 0

    def tell(self) -> None:
        """Tell everyone whose position has changed."""
        before = self._told
        self._told = {waiting: position for position, waiting in enumerate(self.waiting, 1)}
        for waiting, position in list(self._told.items()):
            if before.get(waiting) != position:
                waiting.changed()


def expected_s(
    places: Sequence[Place], lengths: Collection[float], position: int, now: float, longest_s: float
) -> float:
    """Seconds until the one at `position` has one of the places that are taken; `longest_s` if there is none.

    A session that has lasted for some time goes on for as long as earlier ones of that age did on average, and no
    longer than it may. Who comes next lasts as long as they all did.

    Args:
        lengths: of sessions that have ended.
        position: 1: the next.
        now: a moment of the clock of `Place.since`.
        longest_s: a session of which nothing is known.
    """
    free = [_remaining(place, lengths, now) for place in places] or [longest_s]
    usual = sum(lengths) / len(lengths) if lengths else longest_s
    heapq.heapify(free)
    for _ in range(position - 1):
        heapq.heapreplace(free, free[0] + usual)
    return free[0]


def _remaining(place: Place, lengths: Collection[float], now: float) -> float:
    age = now - place.since
    longer = [length - age for length in lengths if length > age]
    return min(max(0.0, place.ends - now), sum(longer) / len(longer) if longer else inf)
