"""Where a stream's results go: latents, pictures and sound, each written as it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from conf.schema import SinkConfig
from runtime.conditioning import Picture
from stages.sinks.contact_sheet import ContactSheet
from stages.sinks.frames import FramesSink
from stages.sinks.latents import LatentsHash, LatentsSink
from stages.sinks.video import VideoSink


class Outputs:
    """The sinks of one stream.

    Args:
        sink: what is wanted.
        fps: video frames per second.
        picture: size.
        sound: whether the video gets a sound track.
        suffix: put before each file's extension, where several streams share a configuration.
    """

    def __init__(self, sink: SinkConfig, fps: int, picture: Picture, sound: bool, suffix: str = ""):
        def path(name: str | None) -> Path | None:
            return Path(name).with_stem(Path(name).stem + suffix) if name else None

        self.hash = LatentsHash()
        self.frames = 0
        self.paths = {name: path(getattr(sink, name)) for name in ("video", "latents", "frames", "contact_sheet")}
        self._sheet = ContactSheet(fps=fps) if sink.contact_sheet else None
        self._opened: list = []
        try:
            self._latents = self._open(LatentsSink, self.paths["latents"])
            self._video = self._open(VideoSink, self.paths["video"], fps, picture.height, picture.width, sound)
            self._frames = self._open(FramesSink, self.paths["frames"])
        except BaseException:
            self.close()
            raise

    def _open(self, kind, path: Path | None, *rest):
        if path is None:
            return None
        self._opened.append(kind(path, *rest))
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
