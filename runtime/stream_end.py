"""Where a stream ends: with what was asked for, with its sources, or with a stop; and ends that are mistakes."""

from __future__ import annotations

import math
import threading

from conf.errors import UserError
from conf.schema import ModelConfig, StreamConfig
from runtime.encoders import frames_of, pictures_of
from runtime.journal import Line
from runtime.replay import Replay
from runtime.sources import Sources
from stages.build import TEMPORAL_STRIDE
from stages.sources import pose_lines
from stages.sources.actions import NOW


class StreamEnd:
    """Says of every chunk whether the stream ends before it.

    Args:
        model, stream: configuration.
        sources: of the stream, open.
        replay: what was sampled of it before.
        stop: ends it at the next chunk when set.
    """

    def __init__(
        self, model: ModelConfig, stream: StreamConfig, sources: Sources, replay: Replay, stop: threading.Event
    ):
        self.model, self.stream, self.sources, self.replay, self.stop = model, stream, sources, replay, stop

    def length(self) -> int | None:
        """Chunks that are asked for, or that a recording or a video's file has; None: as long as the sources last."""
        video = self.sources.video
        shown = video.length() if video else None
        return min((n for n in (self._limit(), shown) if n is not None), default=None)

    def _limit(self) -> int | None:
        """Chunks behind which the stream ends, whatever its sources have left; a video's file may say too few."""
        recorded = self.sources.inputs.chunks if self.sources.inputs else None
        return min((n for n in (self._asked(), recorded) if n is not None), default=None)

    def _asked(self) -> int | None:
        if self.stream.chunks is not None:
            return self.stream.chunks
        if self.stream.seconds is None:
            return None
        frames = math.ceil(round(self.stream.seconds * self.model.fps, 6))
        _, first = frames_of(self.model, 0)
        return 1 + max(0, math.ceil((frames - first) / (TEMPORAL_STRIDE * self.model.chunk_frames)))

    def finished(self, chunk: int) -> bool:
        """Of a stream that ended before `chunk`: whether that was its own end, and not a stop."""
        length = self._limit()
        stopped = self.stop.is_set() or (self.replay.over(chunk) and self.replay.end.stopped)
        return not stopped or (length is not None and chunk >= length)

    def over(self, chunk: int, taken: bool = False) -> bool:
        """Whether the stream ends before `chunk`; `taken`: its sound and actions were taken from their sources."""
        length, sources = self._limit(), self.sources
        if self.stop.is_set():
            return True
        if self.replay.over(chunk):
            return True
        if length is not None:
            return chunk >= length
        start, _ = frames_of(self.model, chunk)
        finite = []
        if sources.sound and not sources.endless_sound:
            finite.append(sources.sound.over(start))
        if sources.actions:
            # What a live source said last is still shown.
            finite.append(sources.actions.ended and not (taken and getattr(sources.actions, "fresh", False)))
        if sources.poses and sources.poses.finite:
            finite.append(sources.poses.ended and not (taken and sources.poses.fresh))
        if sources.video:
            finite.append(sources.video.ended)
        return bool(finite) and all(finite)

    def refuse_silent(self) -> None:
        """A live source that ends before anything came was meant to say something.

        Raises:
            UserError: one did.
        """
        sound, actions, poses = self.sources.sound, self.sources.actions, self.sources.poses
        if sound and sound.ended and not sound.heard:
            name = getattr(sound.source, "name", "source.audio=-")
            raise UserError(name, "ended before any sound came", "pipe 16-bit 16 kHz mono PCM")
        if getattr(actions, "silent", False):
            raise UserError(actions.name, "ended before any action came", f"write lines like {NOW}")
        if poses and poses.silent:
            raise UserError(poses.name, "ended before any pose came", f"write lines like {pose_lines.NOW}")

    def refuse_short(self, chunk: int, line: Line | None) -> None:
        """A stream ends with its video, but not before it began, nor sooner than it did before.

        Args:
            chunk: for which too few pictures came.
            line: what it was sampled from before; None: it was not.

        Raises:
            UserError: it has not begun.
            RuntimeError: it was longer before.
        """
        if self.stop.is_set():
            return
        if line is not None:
            raise RuntimeError(f"chunk {chunk} wants more pictures than it was sampled from before")
        if chunk == 0:
            source = self.sources.video.source
            name = source.name if source else f"source.tensors={self.sources.tensors.path}"
            rule = f"ended before {pictures_of(self.model, 0)} pictures came, which the first chunk is made of"
            raise UserError(name, rule, "give a longer one")
