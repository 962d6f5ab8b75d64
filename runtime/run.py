"""One run on one device: sources in, the sequential loop, latents decoded, sinks out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conf.schema import Config
from runtime.conditioning import Conditioning
from runtime.oracle import generate
from runtime.outputs import Outputs
from runtime.report import Timeline, report
from runtime.trace import Trace
from stages.build import build_decoder, build_network, choose_device
from stages.codec.base import parameter_bytes
from stages.denoise.denoiser import Denoiser
from stages.post import to_pictures

Progress = Callable[[Timeline], None]


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
        self._conditionings = [self._conditioning(s) for s in range(config.stream.count)]
        picture = self._conditionings[0].picture
        self.network = build_network(config.model, self.device)
        self.denoiser = Denoiser(config.model, self.network, picture.rows, picture.columns)
        self.decoder = build_decoder(config.model, self.device) if config.sink.needs_frames else None
        first = self._conditionings[0]
        parts = (self.network, self.decoder, first.text_encoder, first.audio_encoder)
        self.weight_bytes = sum(parameter_bytes(p) for p in parts if p is not None)

    def _stream_id(self, index: int) -> str:
        return self.config.stream.id if self.config.stream.count == 1 else str(index)

    def _conditioning(self, index: int) -> Conditioning:
        config = self.config
        stream = replace(config.stream, id=self._stream_id(index))
        return Conditioning(config.model, stream, config.source, self.stop, self.device)

    def length(self, index: int) -> int | None:
        """Chunks that stream `index` will have; None: as long as its sources last."""
        return self._conditionings[index].length()

    def stream(self, index: int, folder: Path, progress: Progress) -> dict[str, Any]:
        """Run stream `index` to its end.

        Args:
            index: 0 .. stream.count - 1.
            folder: for the trace.
            progress: told after every chunk.

        Returns:
            The stream's report.
        """
        config, conditioning = self.config, self._conditionings[index]
        suffix = f".{index}" if config.stream.count > 1 else ""
        outputs = Outputs(config.sink, config.model.fps, conditioning.picture, conditioning.sound is not None, suffix)
        trace = Trace(folder / f"trace{suffix}.json")
        timeline = Timeline(config.model.fps, trace.clock)
        state = self.decoder.start() if self.decoder else None
        try:
            entered = trace.clock()
            for chunk, latents in enumerate(generate(self.denoiser, conditioning, trace)):
                outputs.latents(latents)
                _, frames = conditioning.frames(chunk)
                sound = conditioning.samples(chunk)
                if self.decoder:
                    with trace.span("decode", chunk), torch.inference_mode():
                        pictures = to_pictures(self.decoder(latents, state))
                    with trace.span("sink", chunk):
                        outputs.pictures(pictures, sound)
                timeline.chunk(entered, frames, conditioning.changes(chunk))
                trace.flush()
                progress(timeline)
                entered = trace.clock()
        finally:
            trace.close()
            conditioning.close()
            outputs.close()
        found = replace(config, stream=replace(config.stream, id=self._stream_id(index)))
        return report(found, self.device, self.weight_bytes, trace, timeline, outputs.hash.hexdigest) | {
            "outputs": {name: str(path) for name, path in outputs.paths.items() if path}
        }
