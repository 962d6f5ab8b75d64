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
import torch
from torch import Tensor

from parallel.plan import pace
from runtime.conditioning import Conditioning
from stages.denoise.denoiser import ChunkConditioning

RECENT = 8
"""Chunks whose stage times set the pace."""


@dataclass
class Entry:
    """A chunk that was sampled and may enter, or the end of its stream.

    Attributes:
        stream, chunk: which.
        tensors: what enters the first cell: noise `x`, `distance` per step, conditioning, and `text` where an epoch
            begins; None: the stream ends before this chunk.
        companion: what goes to the last stage directly: `meta` (frames, moment of entry, steered) and `sound`.
        reference: what goes to every bank before chunk 0: latent `x` and `text`.
        epoch: the chunk at which the prompt in force began.
        began, took_s: when encoding began, and how long it took.
    """

    stream: int
    chunk: int
    tensors: dict[str, Tensor] | None = None
    companion: dict[str, Tensor] = field(default_factory=dict)
    reference: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    began: float = 0.0
    took_s: float = 0.0


class Sampler(threading.Thread):
    """Samples and encodes one stream's chunks, one for every credit.

    Args:
        stream: its index.
        conditioning: what drives it.
        steps: S.
        dtype: of latents.
        deliver: takes an `Entry`, or the exception that ended the stream.
        clock: seconds.
    """

    def __init__(self, stream: int, conditioning: Conditioning, steps: int, dtype: torch.dtype, deliver, clock):
        super().__init__(name=f"sample-{stream}", daemon=True)
        self.stream, self.conditioning, self.steps, self.dtype = stream, conditioning, steps, dtype
        self.deliver, self.clock = deliver, clock
        self.credits: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self.waiting = False
        """Whether a source is being waited for."""
        self._epoch = 0

    def run(self) -> None:
        try:
            while True:
                chunk, entered = self.credits.get()
                self.waiting = True
                given = self.conditioning.chunk(chunk)
                self.waiting = False
                if given is None:
                    self.deliver(Entry(self.stream, chunk))
                    return
                self.deliver(self._entry(chunk, entered, given))
        except Exception as error:
            # A thread's exception reaches nobody by itself; the worker raises it.
            self.deliver(error)

    def _entry(self, chunk: int, entered: float, given: ChunkConditioning) -> Entry:
        conditioning, began = self.conditioning, self.clock()
        text = conditioning.text(chunk)
        self._epoch = chunk if text is not None else self._epoch
        distances = [conditioning.distance(chunk, s) for s in range(self.steps + 1)]
        tensors = {
            "x": conditioning.noise(chunk, 0).to(self.dtype),
            "distance": torch.tensor(distances),
            "audio": given.audio,
            "actions": given.actions,
            "text": text,
            **{f"noise{s}": conditioning.given_noise(chunk, s) for s in range(1, self.steps)},
        }
        _, frames = conditioning.frames(chunk)
        meta = torch.tensor([frames, entered, conditioning.changes(chunk)], dtype=torch.float64)
        sound = conditioning.samples(chunk)
        anchor = conditioning.reference() if chunk == 0 else None
        return Entry(
            self.stream,
            chunk,
            {name: t for name, t in tensors.items() if t is not None},
            {"meta": meta} | ({} if sound is None else {"sound": torch.from_numpy(sound.copy())}),
            {} if anchor is None else {"x": anchor, "text": text},
            self._epoch,
            began,
            self.clock() - began,
        )


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
        steps, dtype: of the model.
        in_flight: before anything was measured, and at most.
        deliver: takes an `Entry` from a sampler's thread.
        clock: seconds, the same on every worker of a machine.
    """

    def __init__(
        self, conditionings: list[Conditioning], steps: int, dtype: torch.dtype, in_flight: int, deliver, clock
    ):
        self.limit, self.clock = in_flight, clock
        self.lanes = [Lane(Sampler(i, c, steps, dtype, deliver, clock)) for i, c in enumerate(conditionings)]
        for lane in self.lanes:
            lane.sampler.start()

    @property
    def sampling(self) -> bool:
        """Whether a live source is being waited for."""
        return any(lane.sampler.waiting for lane in self.lanes)

    def ask(self, ready) -> None:
        """Give credit to sample where there is room in flight and the first cell is `ready(stream, chunk)`."""
        for stream, lane in enumerate(self.lanes):
            while not lane.ended and lane.asked - lane.done < self._limit(lane) and ready(stream, lane.asked):
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

    def oldest(self) -> tuple[int, int] | None:
        """(stream, chunk) that is longest on its way."""
        waiting = [(t, s, c) for s, lane in enumerate(self.lanes) for c, t in lane.entered.items()]
        return min(waiting)[1:] if waiting else None

    def _limit(self, lane: Lane) -> int:
        if not lane.times:
            return self.limit
        workers = {w for times in lane.times for w in times}
        typical = [float(np.median([times.get(w, 0.0) for times in lane.times])) for w in workers]
        return min(self.limit, pace(typical))
