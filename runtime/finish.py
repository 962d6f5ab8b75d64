"""The end of the pipeline: final latents in, pictures, sound, files and the viewer's clock out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.outputs import Outputs
from runtime.report import Timeline
from runtime.trace import Trace
from stages.codec.base import Decoder
from stages.post import to_pictures


@dataclass
class Finished:
    """Final latents of a chunk, with what goes with them."""

    chunk: int
    latents: Tensor
    times: dict[int, float]


@dataclass
class Companion:
    """What the head sends ahead of a chunk: sound to hear, frames it makes, when it entered, whether it was steered."""

    sound: np.ndarray | None
    frames: int
    entered: float
    steered: bool


@dataclass
class FinishStream:
    """One stream at the last stage; latents and companions come by different ways and are joined here."""

    outputs: Outputs
    timeline: Timeline
    state: Any
    latents: dict[int, Finished] = field(default_factory=dict)
    companions: dict[int, Companion] = field(default_factory=dict)
    next: int = 0

    @property
    def ready(self) -> bool:
        return self.next in self.latents and self.next in self.companions


class Finish:
    """Decode, post and sinks, chunk by chunk in order.

    Args:
        decoder: None where no pictures are wanted.
        outputs: sinks, per stream.
        fps: of the model.
        trace: told how long decode and sinks took.
    """

    def __init__(self, decoder: Decoder | None, outputs: list[Outputs], fps: int, trace: Trace):
        self.decoder, self.trace = decoder, trace
        self.streams = [
            FinishStream(o, Timeline(fps, trace.clock), decoder.start() if decoder else None) for o in outputs
        ]

    @torch.inference_mode()
    def run(self, stream: int) -> Finished:
        """Finish the next chunk of a stream that is `ready`."""
        held = self.streams[stream]
        chunk = held.next
        finished, companion = held.latents.pop(chunk), held.companions.pop(chunk)
        held.outputs.latents(finished.latents)
        if self.decoder:
            with self.trace.span("decode", chunk):
                pictures = to_pictures(self.decoder(finished.latents, held.state))
            with self.trace.span("sink", chunk):
                held.outputs.pictures(pictures, companion.sound)
        held.timeline.chunk(companion.entered, companion.frames, companion.steered)
        held.next += 1
        return finished

    def close(self) -> None:
        """Finish every file."""
        for held in self.streams:
            held.outputs.close()
