"""The head of the pipeline: what enters it, and when.

A stream's next chunk is sampled only once there is room for it, so that what a viewer does reaches the picture by
the shortest way. Sampling may wait for live sources, so it has a thread of its own.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from conf.errors import UserError
from parallel.plan import pace
from runtime.conditioning import Conditioning
from stages.denoise.denoiser import ChunkConditioning

RECENT = 8
"""Chunks whose stage times set the pace."""


@dataclass
class Entry:
    """A chunk that was sampled and may enter.

    Attributes:
        stream, chunk: which.
        given: encoded conditioning; None: the stream ends before this chunk.
        epoch: the chunk at which the prompt in force began.
        text: its rows, if it begins here.
        sound: samples to hear.
        frames: video frames.
        steered: whether an event begins here.
    """

    stream: int
    chunk: int
    given: ChunkConditioning | None = None
    epoch: int = 0
    text: Tensor | None = None
    sound: np.ndarray | None = None
    frames: int = 0
    steered: bool = False
    entered: float = 0.0
    """When it was let in, on the pipeline's clock."""
    began: float = 0.0
    took_s: float = 0.0
    """When encoding began, and how long it took."""


class Sampler(threading.Thread):
    """Samples one stream's chunks, one for every credit."""

    def __init__(self, stream: int, conditioning: Conditioning, deliver, clock):
        super().__init__(name=f"sample-{stream}", daemon=True)
        self.stream, self.conditioning, self.deliver, self.clock = stream, conditioning, deliver, clock
        self.credits: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self.waiting = False

    def run(self) -> None:
        epoch = 0
        try:
            while True:
                chunk, entered = self.credits.get()
                self.waiting = True
                given = self.conditioning.chunk(chunk)
                self.waiting = False
                began = self.clock()
                if given is None:
                    self.deliver(Entry(self.stream, chunk))
                    return
                text = self.conditioning.text(chunk)
                epoch = chunk if text is not None else epoch
                _, frames = self.conditioning.frames(chunk)
                sound, steered = self.conditioning.samples(chunk), self.conditioning.changes(chunk)
                took = self.clock() - began
                self.deliver(
                    Entry(self.stream, chunk, given, epoch, text, sound, frames, steered, entered, began, took)
                )
        except UserError as error:
            self.deliver(error)


@dataclass
class Lane:
    """One stream at the head."""

    sampler: Sampler
    asked: int = 0
    done: int = 0
    ended: bool = False
    times: deque[dict[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    entered: dict[int, float] = field(default_factory=dict)


class Head:
    """Paces every stream: in flight <= ceil(sum of stage times / slowest), by what was measured lately.

    Args:
        conditionings: per stream.
        in_flight: before anything was measured, and at most.
        deliver: takes an `Entry` from a sampler's thread.
        clock: seconds, the same on every worker of a machine.
    """

    def __init__(self, conditionings: list[Conditioning], in_flight: int, deliver, clock):
        self.limit, self.clock = in_flight, clock
        self.lanes = [Lane(Sampler(i, c, deliver, clock)) for i, c in enumerate(conditionings)]
        for lane in self.lanes:
            lane.sampler.start()

    @property
    def sampling(self) -> bool:
        """Whether a live source is being waited for."""
        return any(lane.sampler.waiting for lane in self.lanes)

    def ask(self, ready) -> None:
        """Give credit to sample where a chunk may enter: room in flight, and `ready(stream, chunk)` at the first cell."""
        for stream, lane in enumerate(self.lanes):
            if not lane.ended and lane.asked - lane.done < self._limit(lane) and ready(stream, lane.asked):
                lane.entered[lane.asked] = self.clock()
                lane.sampler.credits.put((lane.asked, lane.entered[lane.asked]))
                lane.asked += 1

    def done(self, stream: int, chunk: int, times: dict[int, float]) -> None:
        """A chunk has left the last stage; `times` is what each worker spent on it."""
        lane = self.lanes[stream]
        lane.done = chunk + 1
        lane.entered.pop(chunk, None)
        lane.times.append(times)

    def end(self, stream: int) -> None:
        """The stream's source is exhausted: nothing more enters."""
        self.lanes[stream].ended = True

    def oldest(self) -> tuple[float, int, int] | None:
        """(moment it entered, stream, chunk) of the chunk that is longest on its way."""
        waiting = [(t, s, c) for s, lane in enumerate(self.lanes) for c, t in lane.entered.items() if not lane.ended]
        return min(waiting, default=None)

    def _limit(self, lane: Lane) -> int:
        if not lane.times:
            return self.limit
        workers = {w for times in lane.times for w in times}
        typical = [float(np.median([times.get(w, 0.0) for times in lane.times])) for w in workers]
        return min(self.limit, pace(typical))
