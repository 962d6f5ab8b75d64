"""Where a stream's results go: latents, pictures and sound, each written as it comes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from conf.schema import SinkConfig
from runtime.conditioning import Picture
from stages.sinks.contact_sheet import ContactSheet
from stages.sinks.frames import FramesSink
from stages.sinks.latents import LatentsHash, LatentsSink
from stages.sinks.video import VideoSink

FILES = ("video", "latents", "frames", "contact_sheet")


def numbered(sink: SinkConfig, number: int | str) -> SinkConfig:
    """The sinks of one of several streams that share a configuration: its name stands before each extension."""

    def path(name: str | None) -> str | None:
        return str(Path(name).with_stem(f"{Path(name).stem}.{number}")) if name else None

    return replace(sink, **{name: path(getattr(sink, name)) for name in FILES})


class Outputs:
    """The sinks of one stream.

    Args:
        sink: what is wanted.
        fps: video frames per second.
        picture: size.
        sound: whether the video gets a sound track.
    """

    def __init__(self, sink: SinkConfig, fps: int, picture: Picture, sound: bool):
        self.hash = LatentsHash()
        self.frames = 0
        self.paths = {name: Path(path) for name in FILES if (path := getattr(sink, name))}
        self._sheet = ContactSheet(fps=fps) if sink.contact_sheet else None
        self._opened: list = []
        try:
            self._latents = self._open(LatentsSink, "latents")
            self._video = self._open(VideoSink, "video", fps, picture.height, picture.width, sound)
            self._frames = self._open(FramesSink, "frames")
        except BaseException:
            self.close()
            raise

    def _open(self, kind, name: str, *rest):
        if name not in self.paths:
            return None
        self._opened.append(kind(self.paths[name], *rest))
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

    def close(self) -> None:
        """Finish every file; all are playable from here on."""
        while self._opened:
            self._opened.pop().close()
        if self._sheet and self.frames:
            self._sheet.save(self.paths["contact_sheet"])
            self._sheet = None
