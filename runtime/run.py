"""One run on one device: sources in, the sequential loop, latents decoded, sinks out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conf.schema import Config
from runtime.banks import load_bank, save_bank
from runtime.conditioning import Conditioning, Progress
from runtime.encoders import Encoders, Picture
from runtime.finish import Companion, Finish
from runtime.oracle import Memory, generate
from runtime.parts import fast_decoder, fast_denoiser, open_outputs
from runtime.pipeline import opens
from runtime.report import Timeline, worker_report
from runtime.state import FINISHED, State, write
from runtime.trace import worker_trace
from stages.build import choose_device
from stages.codec.base import parameter_bytes
from stages.denoise.finished import Finished
from stages.denoise.share import ALL


class SequentialRun:
    """Plan `sequential`: the whole model in this process.

    Args:
        config: the run.
        stop: ends streams at the next chunk when set.

    Raises:
        UserError: before anything is written, if a source, a weight file or a setting is wrong.
    """

    def __init__(self, config: Config, stop: threading.Event):
        self.config, self.stop = config, stop
        self.device = choose_device(config.device.kind)
        torch.set_num_threads(config.device.threads)
        # Sources first: they are cheap to open, and bad input should fail before weights load.
        encoders, self.orders = Encoders(config.model, self.device), opens(config)
        self.conditionings = [
            Conditioning(
                config.model, order.config, order.source, encoders, stop=stop, state=order.keep and order.keep.state
            )
            for order in self.orders
        ]
        picture = Picture.of(config.model, config.stream)
        self.denoiser = fast_denoiser(config, self.device, picture)
        self.network = self.denoiser.network
        self.decoder = fast_decoder(config, self.device) if config.sink.needs_frames else None
        held = sum(parameter_bytes(p) for p in (self.network, self.decoder) if p is not None)
        self.weight_bytes = held + encoders.weight_bytes

    def stream(self, index: int, folder: Path) -> Stream:
        """Stream `index` (0 .. stream.count - 1), ready to start; its trace goes to `folder`."""
        return Stream(self, index, folder)


class Stream:
    """One stream on its way: iterate to make it go on, chunk by chunk.

    Attributes:
        length: chunks it will have; None: as long as its sources last.
        timeline: what a viewer has noticed so far.
    """

    def __init__(self, run: SequentialRun, index: int, folder: Path):
        self._run, self._conditioning, order = run, run.conditionings[index], run.orders[index]
        self.length = self._conditioning.length()
        # Every stream has a track of its own.
        self._trace = worker_trace(folder, index, keep=run.config.sink.trace)
        model, self._keep = run.config.model, order.keep
        state = self._keep.state if self._keep else None
        made = (state.chunk, state.content["frames"]) if state else (0, 0)
        self.timeline = Timeline(model.fps, self._trace.clock, *made)
        self._finish = Finish(
            order.config.id,
            partial(open_outputs, run.config, order),
            self.timeline,
            self._trace,
            run.decoder,
            self._keep,
            model.recalibrate_chunk,
            model.codec.prime,
        )
        self._finish.open()
        self._saved = 0
        self._memory = Memory(run.denoiser.open(), Finished(model.recache_chunks))
        if state:
            self._resume(state)
        else:
            self._memory.anchor = self._conditioning.reference()

    def _resume(self, state: State) -> None:
        memory = self._memory
        memory.chunk, memory.anchor = state.chunk, state.anchor
        for level, bank in memory.banks.banks.items():
            load_bank(state, level, bank, ALL)
        if memory.finished.most:
            memory.finished.restore(state.read(FINISHED)[0], latents=True)

    def __iter__(self) -> Iterator[Timeline]:
        """Yields after every chunk. However it ends, what was written so far is finished and playable."""
        run, conditioning, finish, trace = self._run, self._conditioning, self._finish, self._trace
        chunk = self._memory.chunk
        try:
            progress, entered = conditioning.progress(chunk), trace.clock()
            for latents in generate(run.denoiser, conditioning, trace, self._memory):
                _, frames = conditioning.frames(chunk)
                accepted = conditioning.accepted(chunk, entered)
                motion = conditioning.motion if chunk == 0 else None
                finish.companions[chunk] = Companion(frames, entered, accepted, conditioning.samples(chunk), motion)
                finish.run(chunk, latents)
                chunk += 1
                progress = conditioning.progress(chunk)
                self._save(chunk, progress)
                trace.flush()
                yield self.timeline
                entered = trace.clock()
            finish.finished = conditioning.finished(chunk)
            self._save(chunk, progress, stopped=not finish.finished)
        finally:
            conditioning.close()
            finish.close()
            trace.close()

    def _save(self, chunk: int, progress: Progress, stopped: bool = False) -> None:
        """Save the state before `chunk`, if it is due there and was not saved."""
        if not (self._keep and self._keep.due(chunk, stopped)) or self._saved == chunk:
            return
        try:
            folder = self._keep.begin(chunk)
            files = progress.write(folder)
            for level, bank in self._memory.banks.banks.items():
                files |= save_bank(folder, level, bank, ALL)
            if self._memory.finished.most:
                files |= write(folder, FINISHED, self._memory.finished.content())
            self._finish.save(chunk, files)
            self._saved = chunk
        except OSError as error:
            self._keep.complain(error)

    def report(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """This stream's part of `report.json`, and that of its one worker."""
        run = self._run
        return self._finish.report(), worker_report(
            self._trace, run.weight_bytes, run.denoiser.stream_bytes, run.device
        )
