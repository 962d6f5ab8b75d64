"""The end of the pipeline: final latents in, pictures, sound, files and the viewer's clock out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.outputs import Outputs
from runtime.report import Timeline, stream_report
from runtime.trace import Trace
from stages.codec.base import Decoder
from stages.post import to_pictures


@dataclass
class Companion:
    """What the head sends ahead of a chunk.

    Attributes:
        frames: video frames it makes.
        entered: when it entered.
        accepted: when the control was accepted that first shows in it; None: nothing is new in it.
        sound: to be heard with it.
        prime: latents that the decoder is to see first; before the first chunk, for some models.
    """

    frames: int
    entered: float
    accepted: float | None
    sound: np.ndarray | None
    prime: Tensor | None = None

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> Companion:
        """From a message's tensors."""
        frames, entered, accepted = tensors["meta"].tolist()
        sound = tensors["sound"].cpu().numpy() if "sound" in tensors else None
        accepted = None if math.isnan(accepted) else accepted
        return Companion(int(frames), entered, accepted, sound, tensors.get("prime"))


@dataclass
class Finish:
    """The end of one stream: decode, post and sinks, chunk by chunk in order.

    Attributes:
        name: of the stream.
        open_outputs: makes the sinks, when the first chunk is on its way.
        timeline: what a viewer notices.
        trace: told how long decode and sinks took.
        decoder: None where no pictures are wanted.
        companions: by chunk, of what is under way.
    """

    name: str
    open_outputs: Callable[[], Outputs]
    timeline: Timeline
    trace: Trace
    decoder: Decoder | None
    companions: dict[int, Companion] = field(default_factory=dict)
    outputs: Outputs | None = None
    state: Any = None

    def open(self) -> None:
        """Open the sinks, unless they are.

        Raises:
            UserError: one cannot be opened.
        """
        if self.outputs is None:
            self.outputs = self.open_outputs()
            self.state = self.decoder.start() if self.decoder else None

    @torch.inference_mode()
    def run(self, chunk: int, latents: Tensor) -> None:
        """Finish a chunk.

        Args:
            chunk: which.
            latents: its final ones, [1, C, c, h, w].

        Raises:
            UserError: a sink cannot go on.
        """
        companion = self.companions.pop(chunk)
        self.outputs.latents(latents)
        if self.decoder:
            if companion.prime is not None:
                with self.trace.span("prime", chunk):
                    self.decoder(companion.prime, self.state)
            with self.trace.span("decode", chunk):
                pictures = to_pictures(self.decoder(latents, self.state))
            with self.trace.span("sink", chunk):
                self.outputs.pictures(pictures, companion.sound)
        self.timeline.chunk(companion.entered, companion.frames, companion.accepted)

    def skip(self, chunk: int) -> None:
        """A chunk of a stream that was cancelled."""
        del self.companions[chunk]

    def report(self) -> dict[str, Any]:
        """The stream's part of `report.json`."""
        return stream_report(self.name, self.timeline, self.outputs)

    def close(self) -> None:
        """Finish every file."""
        if self.outputs:
            self.outputs.close()
