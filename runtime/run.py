"""One run on one device: sources in, the sequential loop, latents decoded, sinks out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from conf.schema import Config
from runtime.conditioning import Conditioning, Encoders, Picture
from runtime.oracle import generate
from runtime.parts import open_outputs
from runtime.pipeline import opens
from runtime.report import Timeline, stream_report, worker_report
from runtime.trace import Trace, worker_trace
from stages.build import build_decoder, build_network, choose_device
from stages.codec.base import parameter_bytes
from stages.denoise.denoiser import Denoiser
from stages.post import to_pictures


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
            Conditioning(config.model, order.config, order.source, encoders, stop=stop) for order in self.orders
        ]
        picture = Picture.of(config.model, config.stream)
        self.network = build_network(config.model, self.device)
        self.denoiser = Denoiser(config.model, self.network, picture.rows, picture.columns)
        self.decoder = build_decoder(config.model, self.device) if config.sink.needs_frames else None
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
        self._run, self._conditioning = run, run.conditionings[index]
        self.length = self._conditioning.length()
        self._outputs = open_outputs(run.config, run.orders[index])
        # Several streams are several tracks, joined when all have ended.
        self._trace = worker_trace(folder, index) if len(run.orders) > 1 else Trace(folder / "trace.json")
        self.timeline = Timeline(run.config.model.fps, self._trace.clock)

    def __iter__(self) -> Iterator[Timeline]:
        """Yields after every chunk. However it ends, what was written so far is finished and playable."""
        run, conditioning, outputs, trace = self._run, self._conditioning, self._outputs, self._trace
        state = run.decoder.start() if run.decoder else None
        if run.decoder and conditioning.prime is not None:
            with trace.span("prime", 0), torch.inference_mode():
                run.decoder(conditioning.prime, state)
        try:
            entered = trace.clock()
            for chunk, latents in enumerate(generate(run.denoiser, conditioning, trace)):
                outputs.latents(latents)
                _, frames = conditioning.frames(chunk)
                sound = conditioning.samples(chunk)
                if run.decoder:
                    with trace.span("decode", chunk), torch.inference_mode():
                        pictures = to_pictures(run.decoder(latents, state))
                    with trace.span("sink", chunk):
                        outputs.pictures(pictures, sound)
                self.timeline.chunk(entered, frames, conditioning.accepted(chunk, entered))
                trace.flush()
                yield self.timeline
                entered = trace.clock()
        finally:
            trace.close()
            conditioning.close()
            outputs.close()

    def report(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """This stream's part of `report.json`, and that of its one worker."""
        run = self._run
        name = self._conditioning.stream.id
        return stream_report(name, self.timeline, self._outputs), worker_report(
            self._trace, run.weight_bytes, run.denoiser.stream_bytes, run.device
        )
