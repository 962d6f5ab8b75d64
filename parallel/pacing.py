"""What may enter the pipeline, and when.

A chunk needs w periods of the slowest stage from end to end, messages included. `ceil(w)` chunks may be on their way,
and the last of these is let in `ceil(w) - w` periods after there was room for it, so that w are on their way in the
mean: the slowest stage is as busy as with `ceil(w)`, and latency follows the way. The longest of the recent ways
counts: where times vary, a stage that is done early must find another chunk waiting.

Where chunks come back to a worker they have left, one that enters between two turns delays all others: there, whole
chunks fill the pipeline, and messages make no room. Of those, a ring of blocks takes in as many as fill it, and the
next when one has passed the head for the last time: what returns is about to, and goes before what is new.

A chunk takes two rooms. One is of the stages that streams share, up to the last stage before output: streams take turns
there, and together fill it just as one does. The other is its stream's own, until its output has written it. So a slow
output slows its own stream, and leaves the shared stages to the others.

No clock and no tensors: the head of the real pipeline and the simulator share it. Times are seconds, or any other unit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from parallel.plan import FULL, Plan, pace, whole

RECENT = 8
"""Chunks whose stage times set the pace."""


HOPS, ENCODE, OUTPUT = -1, -2, -3
"""Stand for workers in a chunk's times: its messages, each from being sent to having come; its encoding; its output.
The last two are stages of their own, beside whatever their workers do."""

Times = dict[int, float]
"""What each worker, and what HOPS, ENCODE and OUTPUT stand for, spent on one chunk."""


class Room:
    """How many chunks may be on their way through some stages, as measured lately: way / slowest stage.

    Args:
        chunks: before anything was measured.
        most: at any time.
        returns: whether chunks come back to stages that they have left.
        share: of the full rate that is enough, where only whole chunks fill the stages.

    Attributes:
        size: chunks on their way at most.
        delay: how long the last place stays empty after it was left.
        taken: chunks on their way now.
        slowest: what the slowest stage takes for a chunk lately; 0: nothing was measured.
    """

    def __init__(self, chunks: int, most: int, returns: bool = False, share: float = FULL):
        self.most, self.returns, self.share = most, returns, share
        self.size, self.delay, self.taken = chunks, 0.0, 0
        self.slowest = 0.0
        self._times: deque[Times] = deque(maxlen=RECENT)
        self._left = float("-inf")
        """When a chunk last made room."""

    @property
    def full(self) -> bool:
        """Whether nothing more may enter."""
        return self.taken >= self.size

    def opens(self, now: float) -> float:
        """The moment from which one more may enter; there is room."""
        return max(now, self._left + self.delay) if self.taken == self.size - 1 else now

    def leave(self, now: float) -> None:
        """A chunk has left."""
        self.taken -= 1
        self._left = now

    def measure(self, times: Times) -> Times:
        """Take in what the stages spent on a chunk; returns what is typical of each lately."""
        self._times.append(times)
        stages = {stage for entry in self._times for stage in entry} - {HOPS}
        typical = {stage: _median([entry.get(stage, 0) for entry in self._times]) for stage in stages}
        if any(typical.values()):
            self.slowest = slowest = max(typical.values())
            if self.returns:
                chunks = whole(pace(typical.values()), self.share)
            else:
                chunks = max(1, max(sum(entry.values()) for entry in self._times) / slowest)
            chunks = min(self.most, chunks)
            self.size = math.ceil(round(chunks, 6))
            self.delay = max(0.0, self.size - chunks) * slowest
        return typical


@dataclass
class Lane:
    """One stream at the head.

    Attributes:
        live: whether its source may make the sampler wait. A chunk that is waited for takes nobody's room.
        first: the chunk with which it begins.
        room: its own.
        asked, entered: chunks granted and sampled, counted from 0.
        left, out: chunks that have left the shared stages, and that its output has written, likewise.
        ended: whether nothing more is sampled.
        times: of chunks between the two.
    """

    live: bool
    first: int
    room: Room
    asked: int = 0
    entered: int = 0
    left: int = 0
    out: int = 0
    ended: bool = False
    times: dict[int, Times] = field(default_factory=dict)


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

    Attributes:
        room: of the stages that streams share.
        in_ring: chunks that are to pass the head again, or for the first time.
    """

    def __init__(
        self,
        in_flight: int,
        most: int | None = None,
        returns: bool = False,
        ring: dict[int, float] | None = None,
        share: float = FULL,
    ):
        self.room = Room(in_flight, in_flight if most is None else most, returns, share)
        self.ring = tuple(ring or ())
        self._ring_size = whole(pace(ring.values())) if ring else 0
        """Chunks that fill the ring."""
        self.in_ring = 0
        self.lanes: dict[int, Lane] = {}
        self._idle: dict[int, Lane] = {}
        """Streams that sample nothing now; who was served last comes last."""

    @classmethod
    def of(cls, plan: Plan) -> Pacer:
        """That of a plan."""
        row, load = plan.rows[0], plan.load()
        # Only who runs the first cells sees chunks come back to them.
        circles = plan.returns and len(row) > 1 and plan.encode == plan.head
        ring = {worker: load[worker] for worker in row} if circles else {}
        return cls(plan.in_flight, plan.most_in_flight, plan.returns, ring, plan.share)

    @property
    def in_flight(self) -> int:
        """Chunks of all streams in the shared stages."""
        return self.room.taken

    def period(self, stream: int) -> float | None:
        """From one chunk of a stream to the next, where all streams want as much as they can get; None: nothing was
        measured yet."""
        shared, lane = self.room.slowest * len(self.lanes), self.lanes.get(stream)
        return max(shared, lane.room.slowest if lane else 0.0) or None

    def open(self, stream: int, live: bool = False, first: int = 0, ended: bool = False) -> None:
        """A stream that wants to sample from chunk `first` on; `ended`: that samples nothing."""
        # Beyond what the shared stages hold, one is with its output, and of one it is being told that it is out.
        room = Room(self.room.size + 2, self.room.most + 2)
        self.lanes[stream] = lane = Lane(live, first, room, first, first, first, first, ended)
        if not ended:
            self._idle[stream] = lane

    def grants(self, ready: Callable[[int, int], bool], now: float) -> list[Grant]:
        """What may be sampled, now or soon: there is room, and the first cell is `ready(stream, chunk)`."""
        found = []
        for stream, lane in list(self._idle.items()):
            if self.room.full or (self.ring and self.in_ring >= self._ring_size):
                break
            if not lane.room.full and ready(stream, lane.asked):
                at = self.room.opens(now)
                if len(self.lanes) == 1:
                    # A chunk that is put off takes its place in the shared room: not while others want it.
                    at = max(at, lane.room.opens(now))
                found.append(Grant(stream, lane.asked, at))
                del self._idle[stream]
                lane.asked += 1
                self._take(lane, not lane.live)
        return found

    def entered(self, stream: int) -> None:
        """A chunk was sampled."""
        lane = self.lanes[stream]
        lane.entered += 1
        self._take(lane, lane.live)
        self._idle[stream] = lane

    def _take(self, lane: Lane, chunks: int) -> None:
        self.room.taken += chunks
        lane.room.taken += chunks
        self.in_ring += chunks

    def passed(self) -> None:
        """A chunk has passed the first cells for the last time."""
        self.in_ring -= 1

    def end(self, stream: int) -> None:
        """A stream's source is exhausted: what it was asked for last does not come."""
        lane = self.lanes[stream]
        self._take(lane, 0 if lane.live else lane.entered - lane.asked)
        lane.ended, lane.asked = True, lane.entered
        self._idle.pop(stream, None)

    def done(self, stream: int, chunk: int, times: Times, now: float) -> None:
        """A chunk has left the shared stages; `times` is what was spent on it there. Empty of a stream that was
        cancelled: nothing was measured."""
        lane = self.lanes[stream]
        lane.left = chunk + 1
        self.room.leave(now)
        if not times or chunk == lane.first:
            return  # a first chunk finds every worker cold
        typical = self.room.measure(times)
        if any(ring := [typical.get(worker, 0) for worker in self.ring]):
            self._ring_size = whole(pace(ring))
        if chunk >= lane.out:
            lane.times[chunk] = times

    def out(self, stream: int, chunk: int, seconds: float, now: float) -> None:
        """A stream's output has written a chunk, in `seconds`; the message that tells of it included."""
        lane = self.lanes[stream]
        lane.out = chunk + 1
        lane.room.leave(now)
        times = lane.times.pop(chunk, None)
        if times and seconds:
            typical = lane.room.measure(times | {OUTPUT: seconds})
            if typical[OUTPUT] < max(typical.values()):
                # It is not its output that holds it back, so the shared room does, and it alone.
                lane.room.size, lane.room.delay = lane.room.most, 0.0

    def over(self, stream: int) -> bool:
        """Whether a stream has ended and all of it is out, for the first time: it is forgotten then."""
        lane = self.lanes.get(stream)
        if lane and lane.ended and min(lane.left, lane.out) >= lane.entered:
            del self.lanes[stream]
            return True
        return False


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
