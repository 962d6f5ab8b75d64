"""Video to video: the latents with which chunks begin, instead of noise alone, and how much noise enters with them.

Pictures come from a file, live, or from `source.tensors`, and are encoded as they come: a causal encoder's state goes
from chunk to chunk. Or their latents are given, then nothing is encoded. Where pictures are known, the level of noise
follows their motion (`stages.sources.motion`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from conf.errors import UserError
from conf.schema import ModelConfig
from runtime.encoders import Encoders, Picture, latents_of, pictures_of
from stages.codec.base import CodecState
from stages.sources.motion import Level, Motion
from stages.sources.tensors import TensorsFile

LATENTS, PICTURES = "video_latents", "video"
"""Keys of `source.tensors`."""
LAST, CACHE, HELD = "last", "cache.", "held"
"""Names of tensors that a state keeps: the last picture, what the encoder remembers, and what a camera is held at."""


class VideoChunk(NamedTuple):
    """What one chunk begins with.

    Attributes:
        latents: of its pictures, float32 [1, C, f, h, w] on the host.
        level: share of noise in what enters: level * noise + (1 - level) * latents.
        timestep: that the network is told in the first step, of 1000; None: the configured one.
    """

    latents: Tensor
    level: float
    timestep: float | None


class Frames(Protocol):
    """A source of pictures, of the stream's size, at the model's rate."""

    name: str
    accepted: float | None  # when the oldest frame came that is new in the latest `take`; None: none, or no matter
    count: int | None  # frames that there are; None: unknown, or live

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3]; None where fewer are left, or when stopped."""
        ...

    def skip(self, count: int) -> None:
        """The first `count` frames were taken by another."""
        ...

    def close(self) -> None:
        """Release the source."""
        ...


class Given:
    """Pictures or latents of a whole stream, under one key of `source.tensors`.

    Args:
        tensors: the file.
        key: which.
        shape: what the tensor must be, with None for its frames.

    Raises:
        UserError: it is another.
    """

    def __init__(self, tensors: TensorsFile, key: str, shape: tuple[int | None, ...]):
        self._tensors, self._key, self._shape = tensors, key, shape
        self.count = tensors.frame_count(key, shape)
        self._next = 0

    def take(self, count: int) -> Tensor | None:
        """The next `count` frames, float32 [1, C, count, h, w]; None where fewer are left."""
        found = self._tensors.frames(self._key, self._shape, self._next, count)
        self._next += count
        return found

    def skip(self, count: int) -> None:
        """The first `count` frames were taken by another."""
        self._next = count


class Video:
    """The video of one stream.

    Args:
        model, picture: of the stream.
        encoders: shared by all streams here; the codec's is loaded where latents are not given.
        source: of pictures; None: `tensors` has some.
        tensors: what `source.tensors` gives; None: nothing.

    Attributes:
        source: as given.
        ended: whether it had too little for a chunk.
        last: what the chunk begins with that was asked for last, and its number; None: none was.

    Raises:
        UserError: what is given has another shape.
    """

    def __init__(
        self,
        model: ModelConfig,
        picture: Picture,
        encoders: Encoders,
        source: Frames | None,
        tensors: TensorsFile | None,
    ):
        self.model, self.encoders, self.source = model, encoders, source
        self.ended, self.last = False, None
        self._latents = self._pictures = self._state = None
        if tensors and LATENTS in tensors.keys:
            self._latents = Given(tensors, LATENTS, (1, model.network.in_channels, None, *picture.latent))
        else:
            self._state = encoders.start()
        if tensors and PICTURES in tensors.keys:
            self._pictures = Given(tensors, PICTURES, (1, 3, None, picture.height, picture.width))
        self._motion = Motion(model.noise_scale)
        self._encoded = self._seen = 0
        """Latents, and pictures, of all chunks so far."""

    def chunk(self, number: int) -> VideoChunk | None:
        """What chunk `number` begins with; None where there is too little left for it, or when stopped. Chunks come in
        order. Waits for live pictures, and raises as their source does."""
        latents, count = latents_of(self.model, number), pictures_of(self.model, number)
        pictures = self._taken(count)
        known = pictures is not None
        found = None
        if self._latents:
            found = self._latents.take(latents) if known or not self._sees else None
        elif known:
            found = self.encoders.video(pictures, self._state)
        if found is None:
            self.ended = True
            return None
        level = self._motion.next(pictures) if known else Level(self.model.noise_scale, None)
        self._encoded += latents
        self._seen += count
        made = VideoChunk(found, *level)
        self.last = number, made
        return made

    @property
    def _sees(self) -> bool:
        """Whether pictures are known."""
        return self.source is not None or self._pictures is not None

    def _taken(self, count: int) -> Tensor | None:
        """Pictures, float32 [3, count, H, W] in [-1, 1]; None where fewer are left, or none are known."""
        if self._pictures:
            given = self._pictures.take(count)
            return None if given is None else given[0]
        frames = self.source.take(count) if self.source else None
        return None if frames is None else pixels(frames)

    @property
    def accepted(self) -> float | None:
        """When the oldest live picture came that the latest chunk is the first to show, in seconds; None: none is."""
        return self.source.accepted if self.source else None

    def length(self) -> int | None:
        """Chunks that it is enough for, as far as its file says; None: unknown."""
        if self._latents:
            return _chunks(self._latents.count, latents_of(self.model, 0), latents_of(self.model, 1))
        frames = (self._pictures or self.source).count
        return None if frames is None else _chunks(frames, pictures_of(self.model, 0), pictures_of(self.model, 1))

    # -- going on -----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What goes on from here: (numbers, tensors, some of them on the encoder's device). Nothing changes them
        later."""
        numbers: dict[str, Any] = {"encoded": self._encoded, "seen": self._seen, "level": self._motion.before}
        tensors = {} if self._motion.last is None else {LAST: self._motion.last}
        if held := getattr(self.source, "held", b""):
            tensors[HELD] = torch.frombuffer(bytearray(held), dtype=torch.uint8)
        if self._state is not None:
            numbers |= {"steps": self._state.steps, "layers": len(self._state.cache)}
            held = enumerate(self._state.cache)
            tensors |= {f"{CACHE}{i:03d}": tensor for i, tensor in held if tensor is not None}
        return numbers, tensors

    def resume(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from the progress of another: a file is read on from where it stood, live pictures from now on.

        Raises:
            UserError: the other was given its latents, so there is no encoder to go on from.
        """
        if self._state is not None and "steps" not in numbers:
            raise UserError("resume", f"was saved with `{LATENTS}` in source.tensors", "give them again")
        self._encoded, self._seen = numbers["encoded"], numbers["seen"]
        self._motion.before, self._motion.last = numbers["level"], tensors.get(LAST)
        if self._latents:
            self._latents.skip(self._encoded)
        else:
            found = (tensors.get(f"{CACHE}{i:03d}") for i in range(numbers["layers"]))
            device = self.encoders.device
            cache = [None if tensor is None else tensor.to(device) for tensor in found]
            self._state = CodecState(cache, numbers["steps"])
        if pictures := self._pictures or self.source:
            pictures.skip(self._seen)
        if HELD in tensors:
            self.source.held = tensors[HELD].numpy().tobytes()


def pixels(frames: np.ndarray) -> Tensor:
    """Frames uint8 [n, H, W, 3] as pictures float32 [3, n, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2), np.float32)).div_(127.5).sub_(1.0)


def _chunks(frames: int, first: int, later: int) -> int:
    """How many whole chunks there are in `frames`, of which the first takes `first` and every other one `later`."""
    return 0 if frames < first else 1 + (frames - first) // later
