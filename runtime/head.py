"""The head of the pipeline: what enters it, and when.

A stream's next chunk is sampled only once there is room for it, so that what a viewer does reaches the picture by
the shortest way. Opening sources and sampling may take long, so every stream has a thread of its own for both.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

import devices
from parallel.message import DUE
from parallel.pacing import OUTPUT, Pacer
from runtime.cadence import UNDER_WAY, Cadence
from runtime.conditioning import Conditioning
from runtime.guard import Guard
from runtime.parts import Opening
from runtime.saving import Mark, Saver
from runtime.state import Keep
from stages.inputs import Given, marked
from stages.sources.live import Turned, turned

TURN_S = 30.0
"""Longest wait for a thread to leave its sources: opening one may take a connection's time."""


@dataclass
class Opened:
    """A stream's sources are open, or cannot be opened.

    Attributes:
        stream: which.
        live: whether a source of it may have to be waited for.
        first: the chunk it begins with.
        sink: what a recalibration still to come is made of, where the stream goes on; empty: nothing.
        failed: whether the stream ends before it begins.
    """

    stream: int
    live: bool = False
    first: int = 0
    sink: Given = field(default_factory=dict)
    failed: bool = False


@dataclass
class Entry:
    """A chunk that was sampled and may enter, or the end of its stream.

    Attributes:
        stream, chunk: which.
        tensors: what enters the first cell, under the names by which it travels: noise `x`, what was given for the
            chunk, and what lasts of the attention sink's inputs with chunk 0; None: the stream ends before this chunk.
        states: inputs of the epoch that begins with the chunk, likewise; empty: none does.
        distances: of the attention sink, for every step and the commit.
        sidecar: what goes to the last stages directly: `sound`, and with chunk 0 what lasts of the attention sink's
            inputs.
        moments: when the chunk `entered`, when the control was `accepted` that first shows in it, and when it is `due`
            to be there, in seconds of this host's clock.
        sink: what goes to every bank before chunk 0: the attention sink's inputs.
        epoch: the chunk at which the prompt in force began.
        began, took_s: when encoding began, and how long it took.
        mark: of the cut before this chunk, whose part here is being written; None: none is made there.
        stopped: whether an end came from outside, before the stream's own.
        timestep: that the network is told in the first step, where that is the chunk's own; 0: it is not.
    """

    stream: int
    chunk: int
    tensors: dict[str, Tensor] | None = None
    states: dict[str, Tensor] = field(default_factory=dict)
    distances: tuple[int, ...] = ()
    sidecar: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, float] = field(default_factory=dict)
    sink: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    began: float = 0.0
    took_s: float = 0.0
    mark: Mark | None = None
    stopped: bool = False
    timestep: float = 0.0


class Sampler(threading.Thread):
    """Opens one stream's sources, then samples and encodes its chunks, one for every credit.

    Args:
        stream: its number.
        opening: opens what drives it.
        steps: S.
        dtype: of latents.
        deliver: takes `Opened`, then an `Entry` for every credit.
        clock: seconds.
        guard: what this thread raises ends the stream.
        keep: how its state is kept; None: not.
        saver: writes what is cut here.
        cadence: says when it is cut so that others may go on with it; None: never.

    Attributes:
        whole: the chunk before which its newest whole cut was made; -1: there is none.
    """

    def __init__(
        self,
        stream: int,
        opening: Opening,
        steps: int,
        dtype: torch.dtype,
        deliver: Callable,
        clock: Callable[[], float],
        guard: Guard,
        keep: Keep | None = None,
        saver: Saver | None = None,
        cadence: Cadence | None = None,
    ):
        super().__init__(name=f"sample-{stream}", daemon=True)
        self.saver, self.cadence, self.whole = saver, cadence, keep.first if keep and keep.cut else -1
        self.stream, self.opening, self.keep = stream, opening, keep
        self.steps, self.dtype, self.deliver, self.clock, self.guard = steps, dtype, deliver, clock, guard
        self.queue = devices.of(opening.device).queue()
        """Of encoders and what they give: beside the worker's passes, and done before it is told."""
        self.credits: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()

    def run(self) -> None:
        first, conditioning = self.keep.first if self.keep else 0, None
        end = opened = Opened(self.stream, first=first, failed=True)
        with self.guard(self.stream, "opening"):
            self.queue.use()
            with self.queue.after(None):
                conditioning = self.opening.make()
                if self.cadence:
                    conditioning.keeps(lambda: self.whole)
                opened = Opened(self.stream, conditioning.live, first, self._pending(conditioning))
        if not opened.failed:
            self.deliver(opened)
            end = self._sample(conditioning)
        if conditioning is not None:
            # Before the end is told: what goes wrong here still stands in the stream's report.
            with self.guard(self.stream, "closing its sources"):
                conditioning.turn() if self.turned else conditioning.close()
        self.queue.close()
        if self.turned:
            return
        if end is not None:
            self.deliver(end)

    @property
    def turned(self) -> bool:
        """Whether the stream goes on in the run's next generation."""
        return turned(self.opening.stop)

    def turn(self) -> None:
        """Stop, and leave live sources as they are for the run's next generation."""
        self.opening.stop.turn()
        self.credits.put(None)

    def _pending(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """A recalibration that was made before the state was saved, and is in force only later, comes again."""
        state = self.keep.state if self.keep else None
        if state is None or not state.anchor:
            return {}
        return marked("sink", state.anchor) | marked("epoch", conditioning.first_states())

    def _sample(self, conditioning: Conditioning) -> Entry | None:
        """Answer every credit with an entry, until the stream ends; returns its end; None: nobody asks any more."""
        while (credit := self.credits.get()) is not None:
            chunk, entered = credit
            if (early := entered - self.clock()) > 0:
                time.sleep(early)
            entry = Entry(self.stream, chunk)
            with self.guard(self.stream, f"sampling chunk {chunk}"), suppress(Turned):
                if conditioning.hold(chunk):
                    entered = self.clock()
                entry = self._entry(conditioning, chunk, entered)
            if self.turned:
                break
            if entry.tensors is None:
                return entry
            self.deliver(entry)
        return None

    def _entry(self, conditioning: Conditioning, chunk: int, entered: float) -> Entry:
        # Of before the chunk: one that does not come may have taken half its sound from a live source.
        progress = conditioning.progress(chunk) if self.keep else None
        given = conditioning.chunk(chunk)
        if given is None:
            entry = Entry(self.stream, chunk, stopped=not conditioning.finished(chunk))
            conditioning.ended(chunk)
        else:
            with self.queue.after(None):
                entry = self._filled(conditioning, chunk, entered, given)
        state = self._begun(chunk) if self.keep and self.keep.due(chunk, entry.stopped) else ""
        if self.keep and (state or (entry.tensors is not None and self.cut_due(chunk))):
            if self.cadence:
                self.cadence.made(chunk)
            entry.mark = Mark(self.whole, state)
            progress.write(self.saver, self.stream, chunk, entry.mark)
        return entry

    def _begun(self, chunk: int) -> str:
        """The folder in which a state is going to be made; empty: the disk refuses."""
        try:
            return str(self.keep.begin(chunk))
        except OSError as error:
            self.keep.complain(error)
            self.keep.drop(chunk)
            return ""

    def cut_due(self, chunk: int) -> bool:
        """Whether a cut is to be made before `chunk` where no state is due."""
        return self.cadence is not None and self.cadence.due(chunk)

    def _filled(self, conditioning: Conditioning, chunk: int, entered: float, given: Given) -> Entry:
        began = self.clock()
        states = conditioning.states(chunk)
        distances = tuple(conditioning.distance(chunk, s) for s in range(self.steps + 1))
        # A recalibration is made of chunk 0 and of what lasts.
        lasting = marked("sink", conditioning.lasting()) if chunk == 0 else {}
        tensors = {
            "x": conditioning.entering(chunk).to(self.dtype),
            **marked("given", given),
            **lasting,
            **conditioning.given_noises(chunk),
        }
        sound = conditioning.samples(chunk)
        sidecar = {"sound": None if sound is None else torch.from_numpy(sound.copy()), **lasting}
        moments = {"entered": entered, "accepted": conditioning.accepted(chunk, entered), DUE: conditioning.due()}
        return Entry(
            self.stream,
            chunk,
            _present(tensors),
            marked("epoch", states or {}),
            distances,
            _present(sidecar),
            _present(moments),
            marked("sink", conditioning.sink()) if chunk == 0 else {},
            conditioning.epoch(chunk),
            began,
            self.clock() - began,
            timestep=conditioning.timestep(chunk),
        )


def _present(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


class Head:
    """Every stream's sampler, and the pace of all.

    Args:
        steps, dtype: of the model.
        pacer: says what may enter.
        deliver: takes what samplers deliver, from their threads.
        clock: seconds.
        guard: of the worker.
        saver: the worker's.
        recover_s: seconds of work that a loss may cost; None: streams are not cut for that.
    """

    def __init__(
        self,
        steps: int,
        dtype: torch.dtype,
        pacer: Pacer,
        deliver: Callable,
        clock: Callable[[], float],
        guard: Guard,
        saver: Saver | None = None,
        recover_s: float | None = None,
    ):
        self.saver, self.recover_s = saver, recover_s
        self.steps, self.dtype, self.deliver, self.clock, self.guard = steps, dtype, deliver, clock, guard
        self.pacer = pacer
        self._lock = threading.RLock()
        """What has left is told from a channel's thread, so that no pass delays the next chunk's credit."""
        self.samplers: dict[int, Sampler] = {}
        self._under_way: dict[tuple[int, int], float] = {}
        """When each chunk entered that has not been put out yet, by (stream, chunk)."""
        self._moved: dict[int, float] = {}
        """When something of each stream entered or was put out last."""
        self._saving: Counter[int] = Counter()
        """Cuts that are being made, by stream: it waits with the chunk before which the next state is due."""

    # -- streams ----------------------------------------------------------------------------------------------------

    def open(self, stream: int, opening: Opening, keep: Keep | None = None) -> None:
        """Open what drives a stream, on a thread of its own; it comes back as `Opened`.

        Raises:
            RuntimeError: the machine has no thread left; nothing comes back then.
        """
        cadence = None
        if keep and self.recover_s is not None:
            cadence = Cadence(self.recover_s, lambda: self._period(stream), lambda: self._saving[stream], keep.first)
        sampler = Sampler(
            stream, opening, self.steps, self.dtype, self.deliver, self.clock, self.guard, keep, self.saver, cadence
        )
        try:
            sampler.start()
        except RuntimeError:
            opening.stop.set()  # sources that were prepared may read already
            sampler.queue.close()
            raise
        with self._lock:
            self.samplers[stream] = sampler

    def _period(self, stream: int) -> float | None:
        with self._lock:
            return self.pacer.period(stream)

    def begin(self, opened: Opened) -> None:
        """A stream's sources are open: it may be asked for chunks. One that failed has ended before it began."""
        with self._lock:
            self.pacer.open(opened.stream, opened.live, opened.first, ended=opened.failed)

    def steer(self, stream: int, prompt: str, accepted: float, number: int) -> None:
        """Change a stream's prompt from its next sampled chunk on. One that has ended takes none."""
        if sampler := self.samplers.get(stream):
            sampler.opening.prompts.steer(prompt, accepted, number)

    def stop(self, stream: int) -> None:
        """Sample nothing more of a stream; its end comes as an `Entry`."""
        if sampler := self.samplers.get(stream):
            sampler.opening.stop.set()

    def over(self, stream: int) -> bool:
        """Whether all of a stream has left, asked for the first time: its sampler is let go of then."""
        with self._lock:
            # Who saves a state tells of it, so this worker stays to hear that.
            if self._saving[stream] or not self.pacer.over(stream):
                return False
            self.samplers.pop(stream, None)
            self._moved.pop(stream, None)
            del self._saving[stream]
            return True

    def cut_now(self) -> None:
        """Have every stream cut before its next chunk."""
        for sampler in list(self.samplers.values()):
            if sampler.cadence:
                sampler.cadence.at_once()

    def close(self, keeps: bool = False) -> None:
        """End every sampler; the sources go with them.

        Args:
            keeps: whether the run goes on in its next generation: live sources stay, and when this returns, nothing of
                this one takes anything from them, or writes in a journal.

        Raises:
            RuntimeError: a thread is stuck, so that cannot be said of it.
        """
        samplers = list(self.samplers.values())
        if keeps:
            for sampler in samplers:
                sampler.turn()
            for sampler in samplers:
                sampler.join(TURN_S)
            if stuck := [sampler.stream for sampler in samplers if sampler.is_alive()]:
                raise RuntimeError(f"the sources of streams {stuck} do not let go within {TURN_S:.0f} s")
            return
        for sampler in samplers:
            sampler.opening.stop.set()
            sampler.credits.put(None)

    # -- chunks -----------------------------------------------------------------------------------------------------

    def ask(self, ready: Callable[[int, int], bool]) -> None:
        """Give credit to sample where there is room in flight and the first cell is `ready(stream, chunk)`."""

        def may_enter(stream: int, chunk: int) -> bool:
            sampler = self.samplers[stream]
            most = UNDER_WAY if sampler.cadence else 1
            full = self._saving[stream] >= most
            saving = full and sampler.keep.due(chunk) and not sampler.opening.stop.is_set()
            return not saving and ready(stream, chunk)

        with self._lock:
            for stream, chunk, at in self.pacer.grants(may_enter, self.clock()):
                self.samplers[stream].credits.put((chunk, at))

    def entered(self, entry: Entry) -> None:
        """A chunk was sampled, or its stream ended before it."""
        with self._lock:
            if entry.mark is not None:
                self._saving[entry.stream] += 1
            if entry.tensors is None:
                self.pacer.end(entry.stream)
                return
            self.pacer.entered(entry.stream)
            self._under_way[entry.stream, entry.chunk] = self._moved[entry.stream] = self.clock()

    def passed(self) -> None:
        """A chunk has passed the first cells for the last time."""
        with self._lock:
            self.pacer.passed()

    def done(self, stream: int, chunk: int, times: dict[int, float]) -> None:
        """A chunk has left the stages that streams share; `times` is what each worker spent on it."""
        with self._lock:
            self.pacer.done(stream, chunk, times, self.clock())

    def out(self, stream: int, chunk: int, times: dict[int, float]) -> None:
        """A chunk has been put out."""
        with self._lock:
            now = self.clock()
            self._under_way.pop((stream, chunk), None)
            self._moved[stream] = now
            self.pacer.out(stream, chunk, times.get(OUTPUT, 0.0), now)

    def saved(self, stream: int, chunk: int = -1, whole: bool = False) -> None:
        """The cut of a stream before `chunk` is whole, or given up: the next one may begin."""
        with self._lock:
            self._saving[stream] -= 1
            if whole and (sampler := self.samplers.get(stream)):
                sampler.whole = chunk

    def overdue(self, limit_s: float) -> dict[int, int]:
        """The oldest chunk under way of every stream of which none has entered or come back for `limit_s`. A stream
        that waits for its source has none under way, and hides no other."""
        with self._lock:
            now = self.clock()
            late = [at for at in self._under_way if now - self._moved[at[0]] > limit_s]
            return dict(sorted(late, reverse=True))
