"""What may enter the pipeline, and when: in flight <= ceil(sum of stage times / slowest), by what was measured lately.

No clock and no tensors: the head of the real pipeline and the simulator share it. The limit is the pipeline's, not a
stream's: several streams take turns, and together fill it just as one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from parallel.plan import pace

RECENT = 8
"""Chunks whose stage times set the pace."""


HOPS, ENCODE = -1, -2
"""Stand for workers in a chunk's times: what its messages took, from being sent to having come; and its encoding, which
is a stage of its own, beside the steps of whatever worker it is on."""


@dataclass
class Lane:
    """One stream at the head: chunks asked for, entered (sampled), and done. `ended`: nothing more is sampled.

    `live`: its source may make the sampler wait. A chunk it waits for takes nobody else's room.
    """

    live: bool = False
    asked: int = 0
    entered: int = 0
    done: int = 0
    ended: bool = False


class Pacer:
    """Who may sample a chunk. A stream samples one at a time.

    Args:
        in_flight: chunks on their way before anything was measured.
        most: at any time; None: the same.
    """

    def __init__(self, in_flight: int, most: int | None = None):
        self.most = in_flight if most is None else most
        self.lanes: dict[int, Lane] = {}
        self.in_flight = 0
        """Chunks on their way, of all streams."""
        self._idle: dict[int, Lane] = {}
        """Streams that sample nothing now; who was served last comes last."""
        self._times: deque[dict[int, float]] = deque(maxlen=RECENT)
        self._limit = in_flight

    def open(self, stream: int, live: bool = False, first: int = 0) -> None:
        """A stream that wants to sample from chunk `first` on."""
        self.lanes[stream] = self._idle[stream] = Lane(live, first, first, first)

    def grants(self, ready: Callable[[int, int], bool]) -> list[tuple[int, int]]:
        """(stream, chunk) of what may be sampled now: there is room, and the first cell is `ready` for it."""
        found = []
        for stream, lane in list(self._idle.items()):
            if self.in_flight >= self._limit:
                break
            if ready(stream, lane.asked):
                found.append((stream, lane.asked))
                del self._idle[stream]
                lane.asked += 1
                self.in_flight += not lane.live
        return found

    def entered(self, stream: int) -> None:
        """A chunk was sampled."""
        lane = self.lanes[stream]
        lane.entered += 1
        self.in_flight += lane.live
        self._idle[stream] = lane

    def end(self, stream: int) -> None:
        """A stream's source is exhausted: what it was asked for last does not come."""
        lane = self.lanes[stream]
        self.in_flight -= 0 if lane.live else lane.asked - lane.entered
        lane.ended, lane.asked = True, lane.entered
        self._idle.pop(stream, None)

    def done(self, stream: int, chunk: int, times: dict[int, float]) -> None:
        """A chunk has left the last stage; `times` is what each worker spent on it, and under HOPS its messages."""
        self.lanes[stream].done = chunk + 1
        self.in_flight -= 1
        if not times:
            return  # of a cancelled stream: nothing was measured
        self._times.append(times)
        stages = {stage for entry in self._times for stage in entry}
        typical = {stage: _median([entry.get(stage, 0.0) for entry in self._times]) for stage in stages}
        hops = typical.pop(HOPS, 0.0)
        if any(typical.values()):
            self._limit = min(self.most, pace(typical.values(), hops))

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
