"""Sessions on one worker in virtual time: those that come and go make no others late."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from functools import partial
from itertools import count

from conf.schema import PlanConfig
from parallel.builders import build
from parallel.passes import Pass
from parallel.plan import Workload
from parallel.schedule import Schedule
from runtime.pace import Pace

STEPS, STEP_S, DECODE_S, BEGIN_S = 4, 0.0082, 0.0285, 0.012
"""Of a chunk, as two cores take for a pocket avatar; beginning a session takes the worker as well."""
CHUNK_S, MARGIN_S = 0.75, 0.12
PEOPLE, SETTLED_S, END_S = 5, 13.0, 60.0
BAD = ((math.inf, 0.0), (5.2, 0.3), (14.0, 0.3))
"""Seconds for which those stay who come again and again, and between two of their sessions."""


class Room:
    """One worker: its schedule decides, and nothing but work takes time.

    Args:
        seed: of when everybody comes.
        deadlines: whether the schedule is told when chunks are due.
    """

    def __init__(self, seed: int, deadlines: bool):
        self.random, self.deadlines, self.now = random.Random(seed), deadlines, 0.0
        self.schedule = Schedule(build(PlanConfig("sequential"), Workload(STEPS, 1)), 0)
        self.sessions: dict[int, Session] = {}
        self.busy = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), act))

    def run(self) -> None:
        while self._events[0][0] < END_S:
            self.now, _, act = heapq.heappop(self._events)
            act()

    def comes(self, stays_s: float = math.inf, away_s: float = 0.0) -> None:
        """Somebody opens a session, and another one when it is over."""
        number = len(self.sessions)
        self.sessions[number] = Session(self, number, self.now + stays_s)
        self.schedule.open(number)
        self.sessions[number].next()
        self.at(self.now + stays_s + away_s, lambda: self.comes(stays_s, away_s))

    def arrive(self, item: Pass, due: float) -> None:
        self.schedule.arrive(item, due, due if self.deadlines else math.inf)
        self.work()

    def work(self) -> None:
        """A stage goes before any cell."""
        if self.busy:
            return
        staged = next(self.schedule.staged(), None)
        item, due = staged or self.schedule.next() or (None, 0.0)
        if item is not None:
            self.busy = True
            begins = item.kind == "step" and item[2:4] == (0, 0)
            took = DECODE_S if staged else STEP_S + BEGIN_S * begins
            self.at(self.now + took * max(0.7, self.random.gauss(1, 0.1)), lambda: self.done(item, due))

    def done(self, item: Pass, due: float) -> None:
        self.busy = False
        for _, following in self.schedule.done(item):
            if following.kind == "step":
                self.schedule.arrive(following, due, due if self.deadlines else math.inf)
            elif following.kind == "stage" and item.kind == "step":
                self.schedule.sidecar(item.stream, item.chunk)
                self.schedule.arrive(following, due)
        if item.kind == "stage":
            self.sessions[item.stream].there()
        self.work()


class Session:
    """Somebody's chunks: sampled as the pace has it, and shown on a clock that the first and late ones set."""

    def __init__(self, room: Room, number: int, until: float):
        self.room, self.number, self.until = room, number, until
        self.zero, self.sampled, self.shown, self.waits = math.inf, 0, 0, 0.0
        self.late: list[float] = []
        """By how much chunks were late once all had settled."""
        self.pace = Pace(self._wait, lambda: room.now)

    def _wait(self, seconds: float) -> None:
        self.waits = seconds

    def next(self) -> None:
        if self.room.now < self.until:
            self.waits = 0.0
            self.pace.hold()
            self.room.at(self.room.now + self.waits, self.sample)

    def sample(self) -> None:
        self.pace.sampled(CHUNK_S)
        item = Pass("step", self.number, self.sampled)
        self.sampled += 1
        self.room.arrive(item, self.pace.shown)
        self.next()

    def there(self) -> None:
        now = self.room.now
        self.zero = min(self.zero, now + MARGIN_S) if self.zero == math.inf else self.zero
        slack = self.zero + self.shown * CHUNK_S - now
        self.zero -= min(0.0, slack)
        due = self.zero + self.shown * CHUNK_S
        self.shown += 1
        if now > SETTLED_S:
            self.late.append(max(0.0, -slack))
        self.room.at(due, lambda: self.pace.slack(slack - MARGIN_S, max(0.0, -slack)))


def late(deadlines: bool) -> tuple[int, int]:
    """(late chunks, all chunks) of people beside whom others come and go, in some rounds."""
    found = [0, 0]
    for seed in range(12):
        room = Room(seed, deadlines)
        for number in range(PEOPLE):
            room.at(number + room.random.random(), room.comes)
        for stays_s, away_s in BAD:
            room.at(SETTLED_S + 0.1 * room.random.random(), partial(room.comes, stays_s, away_s))
        room.run()
        for one in range(PEOPLE):
            chunks = room.sessions[one].late
            found[0] += sum(seconds > 0 for seconds in chunks)
            found[1] += len(chunks)
    return found[0], found[1]


def test_those_who_come_and_go_make_nobody_late():
    found, chunks = late(deadlines=True)
    assert chunks > 3000 and found == 0
    assert late(deadlines=False)[0] > 0, "what the rule is for does not happen here"
