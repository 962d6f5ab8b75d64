"""One run on one device: sources in, the sequential loop, latents decoded, sinks out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import devices
from conf.schema import Config
from parallel.builders import build
from runtime.admission import of_run, own
from runtime.banks import cut_bank, load_bank
from runtime.board import Board
from runtime.conditioning import Conditioning, ConditioningState
from runtime.decoding import Decoding
from runtime.early import Rewrites
from runtime.encoders import Encoders, Picture
from runtime.fast import fast_decoder, fast_denoiser, ready, require
from runtime.oracle import Memory, generate
from runtime.output import Output, Sidecar
from runtime.outputs import look, open_outputs
from runtime.pipeline import opens
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.reasons import Reason
from runtime.report import Timeline, worker_report
from runtime.saving import Mark, Saver, bank_part, parts
from runtime.snapshot import FINISHED, Snapshot
from runtime.timing import Timer
from runtime.trace import worker_trace
from runtime.workload import describe
from stages.codec.base import parameter_bytes
from stages.denoise.finished import Finished
from stages.denoise.share import ALL
from stages.inputs import with_chunk
from stages.post import post_of


class SequentialRun:
    """Plan `sequential`: the whole model in this process.

    Args:
        config: the run.
        stop: ends streams at the next chunk when set.
        loading: told what is being loaded.

    Raises:
        UserError: before anything is written, if a source, a weight file or a setting is wrong.
    """

    def __init__(self, config: Config, stop: threading.Event, loading: Loading | None = None):
        self.config, self.stop = config, stop
        self.device = devices.choose(config.device.kind)
        torch.set_num_threads(config.device.threads)
        require(config, self.device)
        loading = loading or Loading()
        loading("sources and encoders")
        # Sources first: they are cheap to open, and bad input should fail before weights load.
        encoders, self.orders = Encoders(config.model, self.device), opens(config)
        held = of_run(config)
        for order in self.orders:
            held |= own(order, held)
            look(config, order)
        self.conditionings = [
            Conditioning(
                config.model,
                order.config,
                order.source,
                encoders,
                stop=stop,
                state=order.keep and order.keep.state,
                sink=order.sink,
            )
            for order in self.orders
        ]
        picture = Picture.of(config.model, config.stream)
        total = build(config.plan, describe(config)).block_bytes(0)
        loading(f"layers 0-{config.model.network.layers - 1}", total)
        self.denoiser = fast_denoiser(config, self.device, picture, count=loading.count)
        self.network, self.pool = self.denoiser.network, BankPool(self.denoiser, range(config.model.levels), 1)
        loading("decoder")
        self.decoder = fast_decoder(config, self.device)[0] if config.sink.needs_frames else None
        self.post = post_of(config)
        ready(config, self.device, [self.pool], self.decoder, loading)
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
        self._run, self._index, self._conditioning, order = run, index, run.conditionings[index], run.orders[index]
        self.length = self._conditioning.length()
        # Every stream has a track of its own.
        self._trace = worker_trace(folder, index, keep=run.config.sink.trace)
        self._timer = Timer(devices.of(run.device), self._trace)
        model, self._keep = run.config.model, order.keep
        state = self._keep.state if self._keep else None
        made = (state.chunk, state.content["frames"]) if state else (0, 0)
        self.timeline = Timeline(model.fps, self._trace.clock, *made)
        make = partial(open_outputs, run.config, order)
        decodes = run.decoder is not None
        private = order.source.session is not None
        self._output = Output(order.config, model, make, self.timeline, self._trace, self._keep, decodes, private)
        self._saved = 0
        self._whole, self._saver = -1, None
        if self._keep:
            self._saver = Saver(Board(dist.HashStore(), 0, 1), devices.of(run.device), run.config.launcher.cuts)

    def _open(self) -> None:
        """Open what is this stream's own: its files, what its decoder keeps, its banks."""
        run, model = self._run, self._run.config.model
        state = self._keep.state if self._keep else None
        self._output.open()
        self._decoding = Decoding.of(run.decoder, model, state) if run.decoder else None
        finished = Finished(run.denoiser.schedule.kept, with_chunk(self._conditioning.inputs))
        self._memory = Memory(run.pool.take(), finished)
        if self._saver:
            self._saver.start()
        if state:
            self._resume(state)
        else:
            self._memory.anchor = self._conditioning.sink()

    def _resume(self, state: Snapshot) -> None:
        memory, device = self._memory, self._run.device
        memory.chunk = state.chunk
        memory.anchor = {name: tensor.to(device) for name, tensor in state.anchor.items()}
        for level, bank in memory.banks.banks.items():
            load_bank(state, level, bank, ALL)
        if memory.finished.most:
            content = {name: tensor.to(device) for name, tensor in state.read(FINISHED)[0].items()}
            memory.finished.restore(content, latents=True)

    def __iter__(self) -> Iterator[Timeline]:
        """Yields after every chunk. However it ends, what was written so far is finished and playable."""
        run = self._run
        with ExitStack() as stack:
            if self._saver:
                stack.callback(self._saver.close)
            stack.callback(self._output.close)
            stack.callback(self._conditioning.close)
            with self._trace:
                self._open()
                stack.callback(run.pool.give, self._memory.banks)
                yield from self._chunks()

    def _chunks(self) -> Iterator[Timeline]:
        run, conditioning, trace = self._run, self._conditioning, self._trace
        chunk = self._memory.chunk
        progress, entered = conditioning.progress(chunk), trace.clock()
        for latents in generate(run.denoiser, conditioning, self._timer, self._memory):
            self._finish(chunk, latents, entered)
            chunk += 1
            progress = conditioning.progress(chunk)
            self._save(chunk, progress)
            trace.flush()
            yield self.timeline
            conditioning.hold(chunk)
            entered = trace.clock()
        self._output.finished = conditioning.finished(chunk)
        conditioning.ended(chunk)
        self._save(chunk, progress, stopped=not self._output.finished)

    def _finish(self, chunk: int, latents: torch.Tensor, entered: float) -> None:
        """Decode a chunk and put it out."""
        conditioning, run = self._conditioning, self._run
        lasting = conditioning.lasting() if chunk == 0 else {}
        sound = conditioning.samples(chunk)
        sidecar = Sidecar(
            entered, conditioning.accepted(chunk, entered), None if sound is None else torch.from_numpy(sound), lasting
        )
        frames = None
        if self._decoding:
            with self._timer("decode", chunk):
                self._decoding.prime(lasting)
                frames = self._decoding(latents)
            if run.post:
                with self._timer("post", chunk):
                    frames = run.post(frames)
        self._output.write(chunk, latents, frames, sidecar)
        self._timer.settle()  # all of it is over: it was put out

    def _save(self, chunk: int, progress: ConditioningState, stopped: bool = False) -> None:
        """Save the state before `chunk`, if it is due there and was not saved."""
        keep, stream, saver = self._keep, self._index, self._saver
        if not (keep and keep.due(chunk, stopped)) or self._saved == chunk:
            return
        self._saved = self._output.due = chunk
        memory = self._memory

        def then(made: bool) -> None:
            self._whole = chunk if made else self._whole

        try:
            mark = Mark(self._whole, str(keep.begin(chunk)))
            saver.puts_out()
            progress.write(saver, stream, chunk, mark)
            again = memory.finished.content() if memory.finished.most else {}
            rewrites = Rewrites(self._run.config.model, self._run.denoiser.schedule)
            for level, bank in memory.banks.banks.items():
                cut_bank(saver, stream, chunk, bank_part(0, 0, level), level, bank, ALL, again, mark, rewrites)
            if self._decoding:
                self._decoding.cut(saver, stream, chunk, mark)
            awaited = parts(((0, 0, level) for level in memory.banks.banks), self._decoding is not None)
            self._output.save(saver, stream, chunk, awaited, mark, then)
        except OSError as error:
            keep.complain(error)
            keep.drop(chunk)

    def report(self, reason: Reason | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """This stream's part of `report.json`, and that of its one worker; `reason`: why it could not go on."""
        run = self._run
        return self._output.report(reason), worker_report(
            self._trace, run.weight_bytes, run.denoiser.stream_bytes, run.device
        )
