"""Where a stream's results go: latents, pictures and sound, each written as it comes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch

from conf import disk
from conf.errors import UserError
from conf.paths import is_file
from conf.schema import Config, SinkConfig
from runtime.encoders import Picture
from runtime.orders import Open
from runtime.state import Keep, State
from stages.inputs import inputs_of, made_of
from stages.sinks.latents_hash import LatentsHash
from stages.sinks.reader import ReaderSink

log = logging.getLogger(__name__)

FILES = {
    "video": "stages.sinks.video:VideoSink",
    "latents": "stages.sinks.latents:LatentsSink",
    "frames": "stages.sinks.frames:FramesSink",
    "contact_sheet": "stages.sinks.contact_sheet:ContactSheet",
}
"""Settings of sinks that are files of results, and where each is: imported when it is wanted, since a machine that
writes no pictures may lack what they are written with."""
OWN = (*FILES, "inputs")
"""Settings of sinks that are files of one stream alone."""


def numbered(sink: SinkConfig, number: int | str) -> SinkConfig:
    """The sinks of one of several streams that share a configuration: its name stands before each extension.

    Raises:
        UserError: a path such as `.` has no name of its own.
    """

    def path(setting: str) -> str | None:
        if not (given := getattr(sink, setting)):
            return given
        if Path(given).name in ("", ".."):
            rule = "has no name of its own, to which each stream's could be added"
            raise UserError(f"sink.{setting}={given}", rule, "name the file or folder, e.g. outputs/frames")
        return str(Path(given).with_stem(f"{Path(given).stem}.{number}"))

    return replace(sink, **{setting: path(setting) for setting in OWN})


def size(config: Config, order: Open) -> tuple[int, int]:
    """Height and width of a stream's pictures as they are put out, in pixels."""
    picture = Picture.of(config.model, order.config)
    return picture.height * config.post.factor, picture.width * config.post.factor


def look(config: Config, order: Open) -> None:
    """Look, before anything loads, whether a stream's results could be written; leaves nothing there.

    Raises:
        UserError: one could not be.
    """
    if order.sink.video:
        resolve_name("stages.sinks.video").check(order.sink.video, *size(config, order))
    for name in FILES:
        if path := getattr(order.sink, name):
            with disk.writing(f"sink.{name}={path}"):
                (disk.look if name == "frames" else disk.look_file)(path)


class Outputs:
    """The sinks of one stream.

    Args:
        sink: what is wanted.
        fps: video frames per second.
        height, width: of the pictures, in pixels.
        sound: whether the video gets a sound track.
        keep: how the stream's state is kept; where it goes on from one, hash, latents, frames and video do, too.

    Raises:
        UserError: a file cannot be made.
    """

    def __init__(self, sink: SinkConfig, fps: int, height: int, width: int, sound: bool, keep: Keep | None = None):
        state = keep.state if keep else None
        self.first, self.frames, progress = (state.chunk, *_made(state)) if state else (0, 0, None)
        self.hash = LatentsHash(keep is not None, progress)
        self._keep, mark = keep, keep.mark if keep else None
        self._joins = False
        """Whether what is written of the video is joined to what there is of it."""
        self.paths = {name: Path(path) for name in FILES if (path := getattr(sink, name))}
        self._sheet: Any = None
        self._opened: list = []
        try:
            if sink.contact_sheet:
                with disk.writing(f"sink.contact_sheet={sink.contact_sheet}"):
                    disk.prepare(sink.contact_sheet)
                self._sheet = resolve_name(FILES["contact_sheet"])(fps=fps)
            before = self.hash.hexdigest if state else None
            self._latents = self._open("latents", first=self.first, digest=before)
            self._whole = video = self.paths.get("video")
            joins = resolve_name("stages.sinks.join") if video else None
            if video and state and is_file(video) and state.video == video.absolute():
                # What is there stays as it is; if it is the stream's own so far, the rest is joined to it in the end.
                self._joins, self.paths["video"] = joins.is_of(video, mark), joins.segment(video, self.frames)
                disk.remove(self.paths["video"])  # of who went on from here before, and may still have it open
            elif video:
                for _, left in joins.segments(video):
                    disk.remove(left)  # of another video, which is replaced
            self._video = self._open("video", fps, height, width, sound, mark)
            if sink.session and video and is_file(self.paths["video"]):
                self.paths["video"].chmod(0o600)  # it holds what people said
            self._frames = self._open("frames")
            if self._frames:
                self._frames.frames = self.frames
            self._reader = ReaderSink(sink.reader, fps, self.first) if sink.reader else None
            self._session = None
            if sink.session:
                made = resolve_name("stages.sinks.session:SessionSink")
                self._session = made(sink.session, fps, height, width, sound, self.first, self.frames)
            self._opened += filter(None, [self._reader, self._session])
        except BaseException:
            with suppress(UserError):  # what came first is told
                self.close()
            raise

    def _open(self, name: str, *rest, **more):
        if name not in self.paths:
            return None
        self._opened.append(resolve_name(FILES[name])(self.paths[name], *rest, **more))
        return self._opened[-1]

    def latents(self, latents: torch.Tensor) -> None:
        """Final latents of a chunk, [1, C, c, h, w]."""
        latents = latents.cpu()
        self.hash.add(latents)
        if self._latents:
            self._latents.write(latents)

    def pictures(self, pictures: np.ndarray, sound: np.ndarray | None) -> None:
        """A chunk's frames, uint8 [n, H, W, 3], and the sound of the same time."""
        self.frames += len(pictures)
        if self._video:
            self._video.write(pictures, sound)
        if self._frames:
            self._frames.write(pictures)
        if self._sheet:
            self._sheet.add(pictures)
        if self._reader:
            self._reader.write(pictures, sound)
        if self._session:
            self._session.write(pictures, sound)

    def progress(self) -> tuple[dict[str, Any], str | None]:
        """What another goes on from: (counters, the video's path as seen from where states are kept)."""
        path = os.path.relpath(self._whole.absolute(), self._keep.folder) if self._whole else None
        return {"frames": self.frames, "hash": self.hash.progress.hex()}, path

    def cut(self) -> bool:
        """See to it that all so far is on disk when more has been written; False: it is already."""
        if self._video:
            self._video.cut()
        return self._video is not None

    def close(self) -> None:
        """Finish every file; all are playable from here on.

        Raises:
            UserError: one could not be finished; the others are.
        """
        self._finish(*(sink.close for sink in reversed(self._opened)), self._join, self._save_sheet)

    def leave(self) -> None:
        """Finish the files as they are, and let go of who watches, since another goes on with them.

        Raises:
            UserError: as `close`.
        """
        self._joins = False  # that is for who goes on
        self._finish(*(getattr(sink, "leave", sink.close) for sink in reversed(self._opened)), self._save_sheet)

    def _finish(self, *steps: Callable[[], None]) -> None:
        failure: Exception | None = None
        for step in steps:
            try:
                step()
            except Exception as error:  # the first one is raised below
                failure = failure or error
        self._opened.clear()
        if failure is not None:
            raise failure

    def release(self) -> None:
        """From any thread: wait for nobody outside until `hold`. Nothing is lost by that."""
        for sink in filter(None, (self._reader, self._session)):
            sink.release()

    def hold(self) -> None:
        """Wait again for who watches, and takes it slowly."""
        for sink in filter(None, (self._reader, self._session)):
            sink.hold()

    @property
    def seen(self) -> float:
        """Number of the first chunk that who watches may still be without; infinity: nobody watches."""
        return min((sink.seen for sink in (self._reader, self._session) if sink), default=inf)

    def _join(self) -> None:
        if self._joins:
            self._joins = False
            try:
                resolve_name("stages.sinks.join").join(self._whole)
                self.paths["video"] = self._whole
            except UserError as error:
                log.warning("%s", error)

    def _save_sheet(self) -> None:
        if self._sheet and self.frames:
            self._sheet.save(self.paths["contact_sheet"])
            self._sheet = None


def _made(state: State) -> tuple[int, bytes]:
    """(frames, hash in progress) of what was made before a state."""
    counters = state.output[1]
    return counters["frames"], bytes.fromhex(counters["hash"])


def open_outputs(config: Config, order: Open, kind: type[Outputs] = Outputs) -> Outputs:
    """Sinks of a stream; raises as `Outputs` does."""
    sounds = made_of(inputs_of(config.model), "audio") is not None
    return kind(order.sink, config.model.fps, *size(config, order), sounds, order.keep)
