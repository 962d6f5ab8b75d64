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
from runtime.report import Timeline, stream_report, versions
from runtime.state import FINISH, Keep, State, write
from runtime.trace import Trace
from stages.codec.base import CodecState, Decoder
from stages.post import to_pictures


@dataclass
class Companion:
    """What the head sends ahead of a chunk.

    Attributes:
        frames: video frames it makes.
        entered: when it entered.
        accepted: when the control was accepted that first shows in it; None: nothing is new in it.
        sound: to be heard with it.
        motion: with chunk 0 of some models, latents of what is taken to have been before it.
    """

    frames: int
    entered: float
    accepted: float | None
    sound: np.ndarray | None
    motion: Tensor | None = None

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> Companion:
        """From a message's tensors."""
        frames, entered, accepted = tensors["meta"].tolist()
        sound = tensors["sound"].cpu().numpy() if "sound" in tensors else None
        accepted = None if math.isnan(accepted) else accepted
        return Companion(int(frames), entered, accepted, sound, tensors.get("motion"))


@dataclass
class Finish:
    """The end of one stream: decode, post and sinks, chunk by chunk in order.

    Attributes:
        name: of the stream.
        open_outputs: makes the sinks, when the first chunk is on its way.
        timeline: what a viewer notices.
        trace: told how long decode and sinks took.
        decoder: None where no pictures are wanted.
        keep: how the stream's state is kept; None: not.
        recalibrates: the chunk from which its attention sink is made of chunk 0; None: never.
        primes: motion frames that the decoder sees before the first chunk.
        companions: by chunk, of what is under way.
        finished: whether it came to its own end.
    """

    name: str
    open_outputs: Callable[[], Outputs]
    timeline: Timeline
    trace: Trace
    decoder: Decoder | None
    keep: Keep | None = None
    recalibrates: int | None = None
    primes: int = 0
    companions: dict[int, Companion] = field(default_factory=dict)
    finished: bool = False
    outputs: Outputs | None = None
    state: CodecState | None = None
    anchor: Tensor | None = None
    """The first latent frame, and motion frames behind it, as long as they may be needed."""
    saved: int | None = None
    """The chunk before which the latest whole state was saved."""
    _complete: Callable[[], None] | None = None

    def open(self) -> None:
        """Open the sinks, unless they are.

        Raises:
            UserError: one cannot be opened.
        """
        if self.outputs is not None:
            return
        self.outputs = self.open_outputs()
        self.state = self.decoder.start() if self.decoder else None
        if self.keep and self.keep.state:
            self._resume(self.keep.state)

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
        if chunk == 0 and self.recalibrates is not None:
            motion = () if companion.motion is None else [companion.motion]
            self.anchor = torch.cat([latents[:, :, :1], *motion], 2)
        self.outputs.latents(latents)
        if self.decoder:
            if chunk == 0 and self.primes:
                with self.trace.span("prime", chunk):
                    self.decoder(companion.motion[:, :, : self.primes], self.state)
            with self.trace.span("decode", chunk):
                pictures = to_pictures(self.decoder(latents, self.state))
            with self.trace.span("output", chunk):
                self.outputs.pictures(pictures, companion.sound)
        self.timeline.chunk(companion.entered, companion.frames, companion.accepted)
        self._settle()

    def skip(self, chunk: int) -> None:
        """A chunk of a stream that was cancelled."""
        del self.companions[chunk]

    def report(self) -> dict[str, Any]:
        """The stream's part of `report.json`."""
        found = stream_report(self.name, self.timeline, self.outputs) | {"finished": self.finished}
        if self.keep:
            found["state"] = {"resumed_at": self.keep.first or None, "saved": self.saved, "folder": self.keep.folder}
        return found

    def close(self) -> None:
        """Finish every file."""
        if self.outputs:
            self.outputs.close()
        self._settle()

    # -- going on ---------------------------------------------------------------------------------------------------

    def save(self, chunk: int, files: dict[str, str]) -> None:
        """Save what is here of the state before `chunk`, and with it complete the state.

        That is put off until the video so far is on disk: who goes on from a state finds all frames before it.

        Args:
            chunk: chunks finished so far.
            files: names and sha256 of what others have written.

        Raises:
            OSError: the disk refuses.
        """
        if self.recalibrates is None or chunk > self.recalibrates:
            self.anchor = None
        tensors = {"anchor": self.anchor} if self.anchor is not None else {}
        cache = self.state.cache if self.state else []
        tensors |= {f"cache.{i:03d}": tensor for i, tensor in enumerate(cache) if tensor is not None}
        counters, video = self.outputs.progress()
        counters |= {"steps": self.state.steps if self.state else 0, "layers": len(cache)}
        files = files | write(self.keep.part(chunk), FINISH, tensors, counters)
        content = {"frames": self.timeline.frames, "video": video, "decodes": self.state is not None}
        content |= {"versions": versions()}

        def complete() -> None:
            self.keep.complete(chunk, files, content)
            self.saved = chunk

        self._complete = complete
        if not self.outputs.cut():
            self._settle()

    def _settle(self) -> None:
        """Make a state whole that was waiting for the video."""
        if self._complete:
            complete, self._complete = self._complete, None
            try:
                complete()
            except OSError as error:
                self.keep.complain(error)

    def _resume(self, state: State) -> None:
        tensors, counters = state.finish
        self.anchor = tensors.get("anchor")
        if self.state is None:
            return
        device = next(self.decoder.parameters()).device
        found = (tensors.get(f"cache.{i:03d}") for i in range(counters["layers"]))
        self.state.cache = [None if tensor is None else tensor.to(device) for tensor in found]
        self.state.steps = counters["steps"]
