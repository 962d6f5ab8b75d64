"""What may enter the pipeline, and when: in flight <= ceil(a chunk's way / slowest stage), as measured lately.

A way is hardly ever a whole number of periods. Where it takes w of them, ceil(w) chunks may be on it, and the last is
let in the missing part of a period after there was room for it. So w are on their way in the mean: the slowest worker
is as busy, and latency follows the way instead of the next whole number. The longest of the recent ways counts: where
times vary, a stage that is done early must find another chunk waiting.

Where chunks come back to a worker they have left, one that enters between two turns delays all others: there, whole
chunks fill the pipeline, and messages make no room. Of those, a ring of blocks takes in as many as fill it, and the
next when one has passed the head for the last time: what returns is about to, and goes before what is new.

No clock and no tensors: the head of the real pipeline and the simulator share it. The room is the pipeline's, not a
stream's: several streams take turns, and together fill it just as one does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from parallel.plan import FULL, Plan, pace, whole

RECENT = 8
"""Chunks whose stage times set the pace."""


HOPS, ENCODE = -1, -2
"""Stand for workers in a chunk's times: what its messages took, from being sent to having come; and its encoding, which
is a stage of its own, beside the steps of whatever worker it is on."""


@dataclass
class Lane:
    """One stream at the head, from chunk `first` on: chunks asked for, entered (sampled), and done. `ended`: nothing
    more is sampled.

    `live`: its source may make the sampler wait. A chunk it waits for takes nobody else's room.
    """

    live: bool = False
    first: int = 0
    asked: int = 0
    entered: int = 0
    done: int = 0
    ended: bool = False


class Grant(NamedTuple):
    """A stream may sample a chunk, `at` a moment that may be still to come."""

    stream: int
    chunk: int
    at: float


class Pacer:
    """Who may sample a chunk, and when. A stream samples one at a time.

    Args:
        in_flight: chunks on their way before anything was measured.
        most: at any time; None: the same.
        returns: whether chunks come back to workers that they have left.
        ring: seconds, or any unit, that each worker of the ring at the head spends on a chunk; empty: there is none.
        share: of the full rate that is enough, where only whole chunks fill the pipeline.
    """

    def __init__(
        self,
        in_flight: int,
        most: int | None = None,
        returns: bool = False,
        ring: dict[int, float] | None = None,
        share: float = FULL,
    ):
        self.most, self.share = in_flight if most is None else most, share
        self.returns, self.ring = returns, tuple(ring or ())
        self._turns = whole(pace(ring.values())) if ring else 0
        """Chunks that fill the ring."""
        self.circling = 0
        """Chunks that are to pass the head again, or for the first time."""
        self.lanes: dict[int, Lane] = {}
        self.in_flight = 0
        """Chunks on their way, of all streams."""
        self._idle: dict[int, Lane] = {}
        """Streams that sample nothing now; who was served last comes last."""
        self._times: deque[dict[int, float]] = deque(maxlen=RECENT)
        self._room, self._late = in_flight, 0
        """Chunks on their way at most, and how long the last room stays empty."""
        self._since = float("-inf")
        """When a chunk last made room."""

    @classmethod
    def of(cls, plan: Plan) -> Pacer:
        """That of a plan."""
        row, load = plan.rows[0], plan.load()
        # Only who runs the first cells sees chunks come back to them.
        circles = plan.returns and len(row) > 1 and plan.encode == plan.head
        ring = {worker: load[worker] for worker in row} if circles else {}
        return cls(plan.in_flight, plan.most_in_flight, plan.returns, ring, plan.share)

    def open(self, stream: int, live: bool = False, first: int = 0) -> None:
        """A stream that wants to sample from chunk `first` on."""
        self.lanes[stream] = self._idle[stream] = Lane(live, first, first, first, first)

    def grants(self, ready: Callable[[int, int], bool], now: float) -> list[Grant]:
        """What may be sampled, now or soon: there is room, and the first cell is `ready(stream, chunk)`."""
        found = []
        for stream, lane in list(self._idle.items()):
            if self.in_flight >= self._room or (self.ring and self.circling >= self._turns):
                break
            if ready(stream, lane.asked):
                last = self.in_flight == self._room - 1
                found.append(Grant(stream, lane.asked, max(now, self._since + self._late) if last else now))
                del self._idle[stream]
                lane.asked += 1
                self._count(not lane.live)
        return found

    def entered(self, stream: int) -> None:
        """A chunk was sampled."""
        lane = self.lanes[stream]
        lane.entered += 1
        self._count(lane.live)
        self._idle[stream] = lane

    def rounded(self) -> None:
        """A chunk has passed the head for the last time."""
        self.circling -= 1

    def _count(self, chunks: int) -> None:
        self.in_flight += chunks
        self.circling += chunks

    def end(self, stream: int) -> None:
        """A stream's source is exhausted: what it was asked for last does not come."""
        lane = self.lanes[stream]
        self._count(0 if lane.live else lane.entered - lane.asked)
        lane.ended, lane.asked = True, lane.entered
        self._idle.pop(stream, None)

    def done(self, stream: int, chunk: int, times: dict[int, float], now: float) -> None:
        """A chunk has left the last stage; `times` is what each worker spent on it, and under HOPS its messages."""
        self.lanes[stream].done = chunk + 1
        self.in_flight -= 1
        self._since = now
        if not times or chunk == self.lanes[stream].first:
            # Of a cancelled stream nothing was measured, and a first chunk finds every worker cold.
            return
        self._times.append(times)
        stages = {stage for entry in self._times for stage in entry} - {HOPS}
        typical = {stage: _median([entry.get(stage, 0) for entry in self._times]) for stage in stages}
        if not any(typical.values()):
            return
        slowest = max(typical.values())
        if any(ring := [typical.get(worker, 0) for worker in self.ring]):
            self._turns = whole(pace(ring))
        if self.returns:
            chunks = whole(pace(typical.values()), self.share)
        else:
            chunks = max(1, max(sum(entry.values()) for entry in self._times) / slowest)
        chunks = min(self.most, chunks)
        self._room = math.ceil(chunks)
        self._late = (self._room - chunks) * slowest

    def over(self, stream: int) -> bool:
        """Whether a stream has ended and all of it has left, for the first time: it is forgotten then."""
        lane = self.lanes.get(stream)
        if lane and lane.ended and lane.done >= lane.entered:
            del self.lanes[stream]
            return True
        return False


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
