"""What drives a stream: its sources, encoded once per chunk or once per epoch, and its random draws.

One object per stream answers every question the denoising loop has about chunk i, in order: which text holds,
what was heard and pressed, what noise enters, how long the stream lasts. What `source.tensors` gives is used
in place of what would be encoded or drawn, and its encoder is not loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from conf.paths import is_live
from conf.schema import ModelConfig, SinkConfig, SourceConfig, StreamConfig
from runtime.encoders import Encoders, Picture, frames_of
from runtime.encoding import Encoding
from runtime.ends import LiveEnds
from runtime.journal import Journal, Line
from runtime.pace import Pace
from runtime.prompts import Heard, Prompts
from runtime.replay import Replay
from runtime.saving import Mark, Saver
from runtime.snapshot import CONDITIONING, Snapshot
from runtime.sources import Live, open_sources
from runtime.stream_end import StreamEnd
from runtime.video import VideoChunk
from stages.build import torch_dtype
from stages.controls import Controls, Row
from stages.denoise.draws import Draws
from stages.denoise.schedule import schedule_of
from stages.inputs import (
    LATENT_FRAMES,
    REFERENCE,
    Axis,
    Given,
    Views,
    inputs_of,
    noise_name,
    on,
    with_chunk,
)
from stages.sources.live import Turned, turned
from stages.views import where

log = logging.getLogger(__name__)

BEFORE = "before."
"""Marks what inputs reach back to, in a state."""


VIDEO = "video."
"""Marks what a video goes on from, likewise."""


class ConditioningState(NamedTuple):
    """Where what drives a stream stands between two chunks: plain values, the sound that is held, and what the video's
    encoder remembers."""

    content: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tensors: dict[str, Tensor]

    def write(self, saver: Saver, stream: int, chunk: int, mark: Mark) -> None:
        """Write it as a part of the cut before `chunk`, on the saver's thread."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.arrays.items()}
        saver.take(stream, chunk, CONDITIONING, tensors | self.tensors, self.content, mark)


class Conditioning:
    """Everything that drives one stream.

    Args:
        model, stream, source: configuration.
        encoders: shared by all streams here.
        stdin: where `-` reads; None: standard input.
        stop: ends the stream at the next chunk when set; releases live sources. None: its own.
        state: what the stream goes on from; None: it begins.
        sink: where inputs are recorded, if at all.
        prompts: that others may steer already; None: its own.
        journal: of what is sampled. Chunks that are in it are sampled again, as they were; None: there is none.
        ends: live sources that are kept, where there is a journal: those of before, if they are open. None: none are.

    Raises:
        UserError: a source is missing, broken or does not fit the model. Sources are opened here, so bad input
            fails before anything streams.
    """

    def __init__(
        self,
        model: ModelConfig,
        stream: StreamConfig,
        source: SourceConfig,
        encoders: Encoders,
        stdin: BinaryIO | None = None,
        stop: threading.Event | None = None,
        state: Snapshot | None = None,
        sink: SinkConfig | None = None,
        prompts: Prompts | None = None,
        journal: Journal | None = None,
        ends: LiveEnds | None = None,
    ):
        self.model, self.stream, self.encoders, self.inputs = model, stream, encoders, inputs_of(model)
        self.stop = threading.Event() if stop is None else stop
        self.picture = Picture.of(model, stream)
        self.draws, self._schedule = Draws(stream.seed, stream.id), schedule_of(model)
        self.prompts = Prompts(stream) if prompts is None else prompts
        self._first = state.chunk if state else 0
        self._journal, self.replay = journal, Replay(journal, self._first)
        ends = None if journal is None else ends or LiveEnds()
        self._survived = ends is not None and ends.opened
        self._pace = (ends and ends.pace) or (Pace(self.stop.wait) if source.paced else None)
        sink = sink or SinkConfig(video=None)
        self.sources = open_sources(
            model, source, sink, self.picture, encoders, stdin, self.stop, self.prompts, self._pace, self._first,
            Live(ends, self.replay if ends else None),
        )  # fmt: skip
        try:
            self._prepare(source, state)
        except BaseException:
            self.close()
            raise

    def _prepare(self, source: SourceConfig, state: Snapshot | None) -> None:
        self.tensors, self.sound, self.actions = self.sources.tensors, self.sources.sound, self.sources.actions
        self.live, self.video, self.poses = self.sources.live, self.sources.video, self.sources.poses
        self._pose: np.ndarray | None = None
        """Of the last frame that was sampled, float64 [4, 4]; None: there is no camera, or nothing was."""
        self._last_epoch: int | None = None
        if self.sources.inputs:
            self.prompts.plan(self.sources.inputs.prompts)
        self.encoding = Encoding(self.model, self.picture, self.encoders, self.sources, self.prompts)
        self._end = StreamEnd(self.model, self.stream, self.sources, self.replay, self.stop)
        self._sink = self.encoding.sink(encode=state is None)
        if state is not None:
            self._resume(state, source)
        if self.replay.again:
            self._go_on()

    # -- going on ------------------------------------------------------------------------------------------------

    def progress(self, chunk: int) -> ConditioningState:
        """Where the stream stands before `chunk` is sampled. Made of what never changes later, so it costs nothing."""
        content: dict[str, Any] = self.prompts.progress(chunk)
        arrays: dict[str, np.ndarray] = {}
        if self.sound:
            content["sound"], arrays = self.sound.progress
        if hasattr(self.actions, "progress"):
            content["actions"] = self.actions.progress
        if self.poses:
            last = {} if self._pose is None else {"last": self._pose.tolist()}
            content["poses"] = last | self.poses.progress
        if self._journal:
            content |= {"run": self._journal.run, "pace": self._pace.progress if self._pace else None}
        arrays |= {f"{BEFORE}{name}": tensor.float().cpu().numpy() for name, tensor in self.encoding.before.items()}
        tensors: dict[str, Tensor] = {}
        if self.video:
            content["video"], held = self.video.progress
            tensors = {f"{VIDEO}{name}": tensor for name, tensor in held.items()}
        return ConditioningState(content, arrays, tensors)

    def _resume(self, state: Snapshot, source: SourceConfig) -> None:
        """Put every source where it stood; the text in force is given out again with the first chunk."""
        held, content = state.read(CONDITIONING)
        chunk = state.chunk
        again = self._journal is not None and content.get("run") == self._journal.run
        self.prompts.resume(chunk, content, time.perf_counter(), again)
        if self.sound and "sound" in content:
            arrays = {name: tensor.numpy() for name, tensor in held.items() if not name.startswith((BEFORE, VIDEO))}
            live = is_live(source.audio) or self.sources.private or bool(self.sources.ends and self.sources.ends.sound)
            self.sound.resume(content["sound"], arrays, live, again)
            if self.sources.sink:
                self.sources.heard()  # what is read on of a file is no chunk's
        self.encoding.before = {name.removeprefix(BEFORE): t for name, t in held.items() if name.startswith(BEFORE)}
        if self.video:
            own = {name.removeprefix(VIDEO): t for name, t in held.items() if name.startswith(VIDEO)}
            self.video.resume(content["video"], own)
        start, _ = self.frames(chunk)
        if hasattr(self.actions, "progress"):
            if "actions" in content and not self._survived:
                self.actions.resume(content["actions"], again)
        elif self.actions:
            self.actions.take(start - 1, 1)
        if self.poses and "poses" in content and not self._kept(self.poses):
            self.poses.resume(content["poses"], again)
        if "last" in content.get("poses", ()):
            self._pose = np.array(content["poses"]["last"])
        if again and self._pace and not self._survived:
            self._pace.resume(content["pace"])

    def _kept(self, source: Any) -> bool:
        """Whether a source stands where it stood, since its process survived."""
        return self._survived and source in self.sources.ends.sources

    def _go_on(self) -> None:
        """The stream was sampled before, in this run: what is live goes on behind what is sampled again."""
        if self._pace:
            self._pace.wire(self.stop.wait)
        if (last := self.replay.last) is not None:
            self.prompts.shown(last.number)
            if not self._survived:
                if hasattr(self.actions, "progress"):
                    self.actions.resume(last.held, again=True)
                if self.poses in self.sources.ends.sources:
                    self.poses.resume(last.looked, again=True)
                if self._pace:
                    self._pace.resume(last.pace)
        if self._pace and not self._survived:
            self._pace.turn()

    # -- what was given as tensors ------------------------------------------------------------------------------

    def _given(self, key: str, shape, dtype: torch.dtype | None = None) -> Tensor | None:
        return self.tensors.get(key, shape, dtype) if self.tensors else None

    # -- what the loop asks ---------------------------------------------------------------------------------------

    def frames(self, chunk: int) -> tuple[int, int]:
        """(first video frame, number of video frames) of a chunk."""
        return frames_of(self.model, chunk)

    def length(self) -> int | None:
        """Chunks that are asked for, or that a recording or a video's file has; None: as long as the sources last."""
        return self._end.length()

    def finished(self, chunk: int) -> bool:
        """Of a stream that ended before `chunk`: whether that was its own end, and not a stop."""
        return self._end.finished(chunk)

    def chunk(self, chunk: int) -> Given | None:
        """What chunk `chunk` is made with, encoded; None where the stream ends before it. Waits for live sources."""
        self._look_for_turn()
        line = self.replay.take(chunk)
        if line is None and self._end.over(chunk):
            return None
        prompt = self._begin(chunk, line)
        if self.video and self.video.chunk(chunk) is None:
            self._end.refuse_short(chunk, line)
            return None
        start, count = self.frames(chunk)
        made, taken, views = {}, None, None
        for one in with_chunk(self.inputs):
            if one.controls and taken is None:
                taken = self._taken(start, count, one.controls)
            if one.source == "camera":
                views = self._looked(start, count, taken)
            made[one.name] = self.encoding.own(one, chunk, count, taken, views)
        # A live source may have ended while it was waited for.
        if line is None and chunk == 0 and not self.stop.is_set():
            self._end.refuse_silent()
        if line is None and self.live and self._end.over(chunk, taken=True):
            return None
        if self.sound:
            self.sound.hear(start + count)
        if line is None:
            self._sampled(chunk, count)
        if self.sources.sink:
            looked = self.sources.looked(views)
            self.sources.sink.chunk(chunk, prompt, self.sources.heard(), taken, self.sources.seen(), looked)
        return self.encoding.whole(made)

    def _begin(self, chunk: int, line: Line | None) -> str | None:
        """Take in what was said by now, or by then; returns the prompt that begins with the chunk."""
        if self.sources.ends:
            self.sources.ends.again(line)
        if line is not None:
            heard = None if line.prompt is None else Heard(line.prompt, line.accepted, line.number)
            return self.prompts.again(chunk, heard)
        if session := self.sources.session:
            session.begin(self._pace.waited_s if self._pace else 0.0)
        return self.prompts.sample(chunk)

    def _sampled(self, chunk: int, count: int) -> None:
        """A chunk of `count` video frames was, for the first time."""
        self._look_for_turn()
        if self._pace:
            self._pace.sampled(count / self.model.fps)
        if self._journal:
            self._journal.append(line := self._line(chunk))
            self.sources.ends.drop(line)
            if self.sources.ends.video:
                self.sources.ends.video.drop(self._journal.whole())
        if self.sources.session:
            self.sources.session.sampled(chunk, self._at)

    @property
    def _at(self) -> list[float] | None:
        """Where the world's camera is in the last frame that was sampled; None: it has none."""
        return None if self._pose is None else where(self._pose)

    def _line(self, chunk: int) -> Line:
        line = Line(chunk, number=self.prompts.sampled, at=self._at)
        if heard := self.prompts.latest:
            line.prompt, line.accepted = heard.prompt, heard.accepted
        self.sources.ends.note(line)
        return line

    def _look_for_turn(self) -> None:
        """Nothing is sampled for a generation that is over: the next one does it."""
        if turned(self.stop):
            raise Turned

    def hold(self, chunk: int) -> bool:
        """Wait until `chunk` is due, where the stream is driven live; returns whether it had to be waited for."""
        if self._pace is None or chunk in self.replay or self._end.over(chunk):
            return False
        return self._pace.hold()

    def _taken(self, start: int, count: int, controls: Controls) -> list[Row]:
        """The row of every video frame."""
        return self.actions.take(start, count) if self.actions else [controls.rest] * count

    def _looked(self, start: int, count: int, rows: list[Row]) -> Views:
        """What the camera sees from, in the frame before and in every one of a chunk's own."""
        views = self.poses.take(start, count, rows)
        self._pose = views.poses[-1]
        return views

    def samples(self, chunk: int) -> np.ndarray | None:
        """The sound to hear with a chunk's frames, float32 at 16 kHz; None for a silent model."""
        start, count = self.frames(chunk)
        return self.sound.samples(start + count) if self.sound else None

    def epoch(self, chunk: int) -> int:
        """The chunk with which what holds at `chunk` began; asked for once the chunk is sampled."""
        epochs = on(self.inputs, Axis.EPOCH)
        return max((self.encoding.began(one, chunk, self._first) for one in epochs), default=0)

    def states(self, chunk: int) -> Given | None:
        """An epoch's inputs (text rows [1, L, width], ...) if one starts at `chunk`, else None."""
        now = self.epoch(chunk)
        if now == self._last_epoch:
            return None
        self._last_epoch = now
        return {one.name: self.encoding.state(one, now) for one in on(self.inputs, Axis.EPOCH)}

    def first_states(self) -> Given:
        """Those of chunk 0: a recalibration that is still to come is read with them."""
        return {one.name: self.encoding.state(one, 0, self.stream.prompt) for one in on(self.inputs, Axis.EPOCH)}

    def accepted(self, chunk: int, entered: float) -> float | None:
        """When the control that first shows in `chunk` was accepted, in seconds; None: nothing is new in it.

        Live control counts from when it came, a prompt as `Prompts.accepted` says.
        """
        seen = self.video.accepted if self.video else None
        driven = (getattr(source, "accepted", None) for source in (self.actions, self.poses))
        found = (self.prompts.accepted(chunk, entered), *driven, seen)
        return min((moment for moment in found if moment is not None), default=None)

    def due(self) -> float | None:
        """When the chunk that was sampled last has to be there, in seconds; None: nobody watches it live."""
        return self._pace.shown if self._pace else None

    def sink(self) -> Given:
        """Inputs of the attention sink (`reference`: a latent [1, C, 1, h, w], ...); empty for a model without any."""
        if self.encoding.grey:
            log.warning("source.image is not set: a grey picture stands for it")
        return self._sink

    def lasting(self) -> Given:
        """Those of them that stay when the reference is replaced by a generated frame, in the model's dtype."""
        dtype = torch_dtype(self.model.dtype)
        return {name: tensor.to(dtype) for name, tensor in self._sink.items() if name != REFERENCE}

    def noise(self, chunk: int, step: int) -> Tensor:
        """The noise [1, C, c, h, w], float32 on the CPU, that enters a step of a chunk."""
        given = self.given_noise(chunk, step)
        return self.draws.noise(chunk, step, self._latent_shape(chunk)) if given is None else given

    def entering(self, chunk: int) -> Tensor:
        """What enters with a chunk, [1, C, f, h, w]: noise, with a share of its video's latents where there are any."""
        noise = self.noises(chunk)
        if self.video is None:
            return noise
        latents, level, _ = self.video_chunk(chunk)
        return level * noise + (1 - level) * latents

    def video_chunk(self, chunk: int) -> VideoChunk | None:
        """What the video gives for the chunk that was sampled last; None: there is no video.

        Raises:
            ValueError: another was sampled since, or none.
        """
        if self.video is None:
            return None
        number, made = self.video.last or (None, None)
        if number != chunk:
            raise ValueError(f"the video of chunk {chunk} is asked for, and chunk {number} was sampled last")
        return made

    def noises(self, chunk: int) -> Tensor:
        """The noise [1, C, f, h, w] that enters with a chunk, of all chunks that join then."""
        return torch.cat([self.noise(joining, 0) for joining in self._schedule.joins(chunk)], LATENT_FRAMES)

    def timestep(self, chunk: int) -> float:
        """What the network is told in a chunk's first step, of 1000, where that is the chunk's own; 0: it is not."""
        made = self.video_chunk(chunk)
        return 0.0 if made is None or made.timestep is None else made.timestep

    def given_noises(self, chunk: int) -> dict[str, Tensor | None]:
        """What `source.tensors` gives of the noise of a chunk's later steps, and of those that are denoised with it, by
        the names by which they travel."""
        passes = range(self._schedule.first_step(chunk), self.model.step_count)
        of = ((behind, level + 1) for step in passes for behind, level in enumerate(self._schedule.together(step)))
        return {
            noise_name(behind, step): self.given_noise(chunk + behind, step)
            for behind, step in of
            if step < self.model.step_count
        }

    def _latent_shape(self, chunk: int) -> tuple[int, ...]:
        return 1, self.model.network.in_channels, len(self.model.frames(chunk)), *self.picture.latent

    def given_noise(self, chunk: int, step: int) -> Tensor | None:
        """The noise `source.tensors` gives for a step of a chunk, if it does."""
        return self._given(f"noise.{chunk:06d}.step.{step}", self._latent_shape(chunk), torch.float32)

    def distance(self, chunk: int, step: int) -> int:
        """How far ahead of the chunk SINK-SHIFT places the attention sink, for one forward."""
        given = self._given("sink_distance", (None, None), torch.int64)
        if given is not None and chunk < given.shape[0] and step < given.shape[1]:
            return int(given[chunk, step])
        shift = self.model.sink_shift
        return self.draws.distance(chunk, step, shift.distance_min, shift.distance_max)

    def ended(self, chunk: int) -> None:
        """The stream has ended before `chunk`."""
        if self._journal:
            self._journal.ended(chunk, not self.finished(chunk))
        if self.sources.sink:
            self.sources.sink.end(chunk)

    def keeps(self, whole: Callable[[], int]) -> None:
        """The newest whole cut is before chunk `whole()`: the journal keeps what was sampled since then."""
        if self._journal:
            self._journal.whole = whole

    def turn(self) -> None:
        """The run goes on in its next generation: let go of all but live sources; these give again what
        no chunk has."""
        self.sources.turn()
        if self._journal:
            self.sources.ends.back()
            self._journal.close()

    def close(self) -> None:
        """Let go of the sources."""
        self.sources.close()
        if self._journal:
            self._journal.close()
