"""The head of the pipeline: what enters it, and when.

A stream's next chunk is sampled only once there is room for it, so that what a viewer does reaches the picture by
the shortest way. Sampling may wait for live sources, so every stream has a thread of its own for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conf.errors import UserError
from parallel.pacing import Pacer
from runtime.conditioning import Conditioning, Progress
from runtime.state import Keep
from stages.denoise.denoiser import ChunkConditioning


@dataclass
class Entry:
    """A chunk that was sampled and may enter, or the end of its stream.

    Attributes:
        stream, chunk: which.
        tensors: what enters the first cell: noise `x`, conditioning, and `text` where an epoch begins; None: the stream
            ends before this chunk.
        distances: of the attention sink, for every step and the commit.
        companion: what goes to the last stage directly: `meta` (frames, moment of entry, moment its control was
            accepted or nan), `sound`, and with chunk 0 `motion`, what is taken to have been before it.
        reference: what goes to every bank before chunk 0: latents `x` (motion frames behind the reference) and `text`.
        epoch: the chunk at which the prompt in force began.
        began, took_s: when encoding began, and how long it took.
        refused: why the stream cannot go on, if its end is a mistake of its user's.
        progress: of what drives the stream, before this chunk, if its state is to be saved there.
        stopped: whether an end came from outside, before the stream's own.
    """

    stream: int
    chunk: int
    tensors: dict[str, Tensor] | None = None
    distances: tuple[int, ...] = ()
    companion: dict[str, Tensor] = field(default_factory=dict)
    reference: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    began: float = 0.0
    took_s: float = 0.0
    refused: UserError | None = None
    progress: Progress | None = None
    stopped: bool = False


class Sampler(threading.Thread):
    """Samples and encodes one stream's chunks, one for every credit.

    Args:
        stream: its number.
        conditioning: what drives it.
        steps: S.
        dtype: of latents.
        deliver: takes an `Entry`, or an exception that is no user's mistake.
        clock: seconds.
        keep: how its state is kept; None: not.
    """

    def __init__(
        self,
        stream: int,
        conditioning: Conditioning,
        steps: int,
        dtype: torch.dtype,
        deliver,
        clock,
        keep: Keep | None = None,
    ):
        super().__init__(name=f"sample-{stream}", daemon=True)
        self.keep = keep
        self.stream, self.conditioning, self.steps, self.dtype = stream, conditioning, steps, dtype
        self.deliver, self.clock = deliver, clock
        self.credits: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self.waiting = False
        """Whether a source is being waited for."""

    def run(self) -> None:
        chunk = 0
        try:
            while True:
                chunk, entered = self.credits.get()
                if (early := entered - self.clock()) > 0:
                    time.sleep(early)
                # Of before the chunk: one that does not come may have taken half its sound from a live source.
                progress = self.conditioning.progress(chunk) if self.keep else None
                self.waiting = True
                given = self.conditioning.chunk(chunk)
                self.waiting = False
                stopped = given is None and not self.conditioning.finished(chunk)
                entry = Entry(self.stream, chunk) if given is None else self._entry(chunk, entered, given)
                entry.stopped = stopped
                if self.keep and self.keep.due(chunk, stopped):
                    entry.progress = progress
                self.deliver(entry)
                if given is None:
                    return
        except UserError as error:
            self.deliver(Entry(self.stream, chunk, refused=error))
        except Exception as error:
            # A thread's exception reaches nobody by itself; the worker raises it.
            self.deliver(error)

    def _entry(self, chunk: int, entered: float, given: ChunkConditioning) -> Entry:
        conditioning, began = self.conditioning, self.clock()
        text = conditioning.text(chunk)
        distances = tuple(conditioning.distance(chunk, s) for s in range(self.steps + 1))
        anchor = conditioning.reference() if chunk == 0 else None
        motion = conditioning.motion if chunk == 0 else None
        tensors = {
            "x": conditioning.noise(chunk, 0).to(self.dtype),
            **given.tensors(),
            "text": text,
            # A recalibration is made of chunk 0 and the same motion frames.
            "motion": motion,
            **{f"noise{s}": conditioning.given_noise(chunk, s) for s in range(1, self.steps)},
        }
        _, frames = conditioning.frames(chunk)
        accepted = conditioning.accepted(chunk, entered)
        meta = torch.tensor([frames, entered, float("nan") if accepted is None else accepted], dtype=torch.float64)
        sound = conditioning.samples(chunk)
        companion = {
            "meta": meta,
            "sound": None if sound is None else torch.from_numpy(sound.copy()),
            "motion": motion,
        }
        return Entry(
            self.stream,
            chunk,
            _present(tensors),
            distances,
            _present(companion),
            {} if anchor is None else {"x": anchor, "text": text},
            conditioning.epoch(chunk),
            began,
            self.clock() - began,
        )


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class Head:
    """Every stream's sampler, and the pace of all.

    Args:
        steps, dtype: of the model.
        pacer: says what may enter.
        deliver: takes an `Entry` from a sampler's thread.
        clock: seconds, the same on every worker of a machine.
    """

    def __init__(self, steps: int, dtype: torch.dtype, pacer: Pacer, deliver: Callable, clock: Callable[[], float]):
        self.steps, self.dtype, self.deliver, self.clock = steps, dtype, deliver, clock
        self.pacer = pacer
        self._lock = threading.RLock()
        """What has left is told from a channel's thread, so that no pass delays the next chunk's credit."""
        self.samplers: dict[int, Sampler] = {}
        self._asked: dict[tuple[int, int], float] = {}
        """When each chunk that has not left yet was asked for, by (stream, chunk)."""

    def open(self, stream: int, conditioning: Conditioning, keep: Keep | None = None) -> None:
        """Begin to sample a stream, or go on with it."""
        sampler = Sampler(stream, conditioning, self.steps, self.dtype, self.deliver, self.clock, keep)
        with self._lock:
            self.samplers[stream] = sampler
            self.pacer.open(stream, conditioning.live, keep.first if keep else 0)
        sampler.start()

    def refuse(self, stream: int) -> None:
        """A stream that cannot begin."""
        with self._lock:
            self.pacer.open(stream)

    @property
    def sampling(self) -> bool:
        """Whether a live source is being waited for."""
        return any(sampler.waiting for sampler in self.samplers.values())

    def ask(self, ready: Callable[[int, int], bool]) -> None:
        """Give credit to sample where there is room in flight and the first cell is `ready(stream, chunk)`."""
        with self._lock:
            for stream, chunk, at in self.pacer.grants(ready, self.clock()):
                self._asked[stream, chunk] = at
                self.samplers[stream].credits.put((chunk, at))

    def steer(self, stream: int, prompt: str, accepted: float) -> None:
        """Change a stream's prompt from its next sampled chunk on."""
        if stream in self.samplers:
            self.samplers[stream].conditioning.steer(prompt, accepted)

    def stop(self, stream: int) -> None:
        """Sample nothing more of a stream; its end comes as an `Entry`."""
        if stream in self.samplers:
            self.samplers[stream].conditioning.stop.set()

    def entered(self, entry: Entry) -> None:
        """A chunk was sampled, or its stream ended before it."""
        stream, last = entry.stream, entry.chunk
        with self._lock:
            if entry.tensors is None:
                self.pacer.end(stream)
                self._asked = {key: at for key, at in self._asked.items() if key[0] != stream or key[1] < last}
            else:
                self.pacer.entered(stream)

    def passed(self) -> None:
        """A chunk has passed the first cells for the last time."""
        with self._lock:
            self.pacer.passed()

    def done(self, stream: int, chunk: int, times: dict[int, float]) -> None:
        """A chunk has left the last stage; `times` is what each worker spent on it."""
        with self._lock:
            self._asked.pop((stream, chunk), None)
            self.pacer.done(stream, chunk, times, self.clock())

    def out(self, stream: int, chunk: int, seconds: float) -> None:
        """A stream's output has written a chunk, in `seconds`."""
        with self._lock:
            self.pacer.out(stream, chunk, seconds, self.clock())

    def over(self, stream: int) -> bool:
        """Whether all of a stream has left; its source is let go of then."""
        with self._lock:
            if not self.pacer.over(stream):
                return False
        sampler = self.samplers.pop(stream, None)
        if sampler:
            sampler.conditioning.close()
        return True

    def oldest(self) -> tuple[int, int] | None:
        """(stream, chunk) that is longest on its way."""
        with self._lock:
            return min(self._asked, key=self._asked.get) if self._asked else None

    def close(self) -> None:
        """Let go of every source."""
        for sampler in self.samplers.values():
            sampler.conditioning.close()
