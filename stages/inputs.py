"""Conditions: what drives a network beside the latents, declared by its family and handled the same for all.

A family lists its inputs. What travels with a chunk and in how many bytes, what `source.tensors` may hold, which
sources are opened and recorded, what a recache runs again and what a state keeps follow from the list.

Three clocks: video frames, latent frames (four video frames each) and chunks. An input lives on one axis:

| axis | entries | how it reaches the network |
|---|---|---|
| `SINK` | one for a stream | once, with the prefill of the attention sink, and again at a recalibration |
| `EPOCH` | one for a prompt | once, with the first chunk of its epoch, ahead of it: `Network.states` |
| `CHUNK` | one for a chunk | with every chunk, for all its passes: `Network.enter` and `Network.drive` |
| `LATENT` | one for a latent frame | likewise |
| `FRAME` | one for a video frame, and `reach` more that were before | likewise |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conf import families
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.controls import Controls

FRAMES_PER_LATENT = 4
"""Video frames of one latent frame: the temporal stride of every codec here."""

Given = dict[str, Tensor]
"""What was given for a chunk, by the names of its inputs; one that nothing is said of is left out."""


class Axis(Enum):
    """What an input has an entry for."""

    SINK = "sink"
    EPOCH = "epoch"
    CHUNK = "chunk"
    LATENT = "latent"
    FRAME = "frame"

    @property
    def with_chunk(self) -> bool:
        """Whether it comes anew with every chunk."""
        return self not in (Axis.SINK, Axis.EPOCH)


@dataclass(frozen=True)
class Encoder:
    """What makes an input of what its source gives.

    Attributes:
        make: the module, with weights of no meaning; it has `tokens(tensor)`, from what the source gives.
        prefix: of its weights in the model's file.
    """

    make: Callable[[], nn.Module]
    prefix: str


@dataclass(frozen=True)
class Ear:
    """How sound is heard before it is encoded.

    Attributes:
        features: (what `build` gave, whether the sound may be heard all at once) -> features of one stream's sound
            (`stages.encode.audio_features.LogMel` and the like).
        build: (model, device) -> a network that features are made by, with weights of its own; None: none.
        values: how many numbers such a network has.
        whole: the setting that has a file heard all at once, if it is set; empty: it is not.
    """

    features: Callable[[Callable[[], Any], bool], Any]
    build: Callable[[ModelConfig, torch.device], Any] | None = None
    values: int = 0
    whole: str = ""


@dataclass(frozen=True)
class Input:
    """One condition.

    Attributes:
        name: of its tensor, as the network knows it.
        axis: what it has an entry for.
        shape: of the tensor of one chunk (or of the stream, or of an epoch), its first dimension of 1 left out; None:
            any.
        source: what it is made of: `prompt`, `image`, `audio`, `actions`, `camera`; empty: only `source.tensors` gives
            it.
        key: its name in `source.tensors`; with every chunk `KEY.CHUNK`. Empty: it cannot be given.
        whole: whether `key` names a tensor of the whole stream instead, which has its entries in order along `at`, one
            for each of its latent or video frames; the last one holds for ever.
        given: shape of what is given there, likewise; None: `shape`, of the chunk's own entries.
        rows: from the source's rows of the chunk's video frames to what is given there; of a camera, from its `Views`.
        entries: of an input that follows from where a chunk stands alone: from its latent frames to what is given.
        encoder: from there to the tensor; None: it is that already.
        ear: of an input made of sound.
        controls: of an input made of actions or of a camera: what can be pressed. All such inputs of a model have the
            same.
        moves: of an input made of a camera: from the pose of a video frame, float64 [4, 4], and the row of its controls
            to the pose of the next.
        latents: whether it is latents, [C, frames, h, w] of the picture's size; h and w are left open in `shape`.
        reach: entries that were before the chunk's own and come first; before the stream the first one stands for all.
        narrow: whether it travels, and reaches the network, in the model's dtype instead of float32.
        primes: whether a decoder is primed with it before a stream.
    """

    name: str
    axis: Axis
    shape: tuple[int | None, ...]
    source: str = ""
    key: str = ""
    given: tuple[int | None, ...] | None = None
    whole: bool = False
    rows: Callable[[Any], Tensor] | None = None
    entries: Callable[[range], Tensor] | None = None
    encoder: Encoder | None = None
    ear: Ear | None = None
    controls: Controls | None = None
    moves: Callable[[np.ndarray, Any], np.ndarray] | None = None
    latents: bool = False
    reach: int = 0
    narrow: bool = False
    primes: bool = False

    @property
    def given_shape(self) -> tuple[int | None, ...]:
        """Of what `source.tensors` holds of it: a chunk's own entries."""
        if self.given is not None:
            return 1, *self.given
        own = list(self.shape)
        if self.reach:
            own[self.at - 1] -= self.reach
        return 1, *own

    @property
    def at(self) -> int:
        """The dimension of its tensor that counts its entries."""
        return LATENT_FRAMES if self.latents else 1

    @property
    def made(self) -> bool:
        """Whether something here makes it, so that every stream has it; else only some have it, as a tensor."""
        return bool(self.source or self.entries)

    @property
    def pictured(self) -> bool:
        """Whether it is latents that the model's codec makes of a picture."""
        return self.source == "image" and self.latents

    @property
    def described(self) -> bool:
        """Whether it is rows that an image encoder makes of a picture."""
        return self.source == "image" and self.axis is Axis.EPOCH

    def bytes(self, dtype: torch.dtype, grid: tuple[int, int]) -> int:
        """Of one chunk's tensor, in a model of this dtype whose latents are `grid` high and wide."""
        return math.prod(self.full(grid)) * (dtype if self.narrow else torch.float32).itemsize

    def full(self, grid: tuple[int, int] = (1, 1), frames: int = 1) -> tuple[int, ...]:
        """The shape of a whole tensor.

        Args:
            grid: height and width of a latent, for an input that is latents.
            frames: how many, where that is not said.
        """
        shape = [1, *self.shape]
        if self.latents:
            shape[2:] = shape[2] or frames, *grid
        return tuple(n or 1 for n in shape)

    def own(self, grid: tuple[int, int] = (1, 1)) -> tuple[int, ...]:
        """The same, of a chunk's own entries."""
        shape = list(self.full(grid))
        shape[self.at] -= self.reach
        return tuple(shape)

    def joined(self, chunks: Sequence[Tensor]) -> Tensor:
        """Tensors of consecutive chunks in one."""
        own = (t.narrow(self.at, self.reach, t.shape[self.at] - self.reach) for t in chunks[1:])
        return torch.cat([chunks[0], *own], self.at)

    def within(self, tensor: Tensor, before: Tensor | None) -> Tensor:
        """A chunk's own entries with those that were before; `before` None: the stream begins."""
        if not self.reach:
            return tensor
        first = tensor.narrow(self.at, 0, 1)
        lead = torch.cat([first] * self.reach, self.at) if before is None else before.to(tensor)
        return torch.cat([lead, tensor], self.at)

    def left(self, tensor: Tensor) -> Tensor | None:
        """The entries that the next chunk will reach back to."""
        return tensor.narrow(self.at, tensor.shape[self.at] - self.reach, self.reach).clone() if self.reach else None


SOURCES = {
    "prompt": (Axis.EPOCH,),
    "image": (Axis.SINK, Axis.EPOCH, Axis.LATENT),
    "audio": (Axis.CHUNK, Axis.LATENT, Axis.FRAME),
    "actions": (Axis.CHUNK, Axis.LATENT, Axis.FRAME),
    "camera": (Axis.LATENT,),
}
"""What inputs can be made of, and the axes on which that is possible. Any other input is given as a tensor."""


def inputs_of(model: ModelConfig) -> tuple[Input, ...]:
    """The inputs of a model, as its family declares them.

    Raises:
        UserError: `model.reference` asks for what the family does not have.
        ValueError: an input is declared that nothing here could make.
    """
    found = families.needed(families.FAMILIES, model.family, "inputs").inputs(model)
    if model.reference and all(one.name != REFERENCE for one in found):
        raise UserError("model.reference=true", f"family {model.family} takes none", "set model.reference=false")
    if model.translation_scale is not None and made_of(found, "camera") is None:
        rule = f"family {model.family} has no camera"
        raise UserError(f"model.translation_scale={model.translation_scale}", rule, "set it null")
    for source in SOURCES:
        if source not in ("image", "actions") and sum(one.source == source for one in found) > 1:
            raise ValueError(f"family {model.family}: only one input can be made of {source}")
    if model.rule.joint and (own := with_chunk(found)):
        raise UserError(
            f"model.context={model.context}",
            f"denoises chunks together that are to come, whose {own[0].name} nobody has yet",
            "use a model that is driven by text alone, or another context",
        )
    for one in found:
        if said := _misfit(one):
            raise ValueError(f"family {model.family}: input {one.name} {said}")
    if len({one.controls for one in found if one.controls}) > 1:
        raise ValueError(f"family {model.family}: inputs are made of different controls")
    return found


def _misfit(one: Input) -> str | None:
    """Why nothing here could make an input; None: it can be made."""
    if one.source and one.axis not in SOURCES.get(one.source, ()):
        return f"cannot be made of {one.source} on axis {one.axis.value}"
    if not (one.source or one.key or one.entries):
        return "has neither a source nor a key"
    if one.axis is Axis.SINK and not one.latents:
        return "goes to the attention sink and is no latents"
    if one.axis is Axis.LATENT and one.source == "image" and not one.latents:
        return "is made of a picture for every latent frame and is no latents"
    if one.whole and (one.axis not in (Axis.LATENT, Axis.FRAME) or not one.key):
        return "is given for the whole stream, which only inputs of latent and video frames with a key are"
    if one.entries and one.axis is not Axis.LATENT:
        return "follows from latent frames, which only inputs of latent frames do"
    if one.source in ("audio", "actions", "camera") and one.rows is None:
        return "does not say what its source's rows become"
    if one.source in ("actions", "camera") and one.controls is None:
        return "does not say what can be pressed"
    if one.source == "camera" and one.moves is None:
        return "does not say how a camera moves"
    if one.source == "audio" and one.ear is None:
        return "does not say how it hears"
    if one.encoder and not one.axis.with_chunk:
        return "has an encoder, which only inputs of a chunk have"
    if one.reach and one.axis is not Axis.FRAME:
        return "reaches back, which only inputs of video frames do"
    return None


def on(inputs: Iterable[Input], *axes: Axis) -> tuple[Input, ...]:
    """Those on some axes."""
    return tuple(one for one in inputs if one.axis in axes)


def with_chunk(inputs: Iterable[Input]) -> tuple[Input, ...]:
    """Those that come anew with every chunk."""
    return tuple(one for one in inputs if one.axis.with_chunk)


def made_of(inputs: Iterable[Input], source: str) -> Input | None:
    """The input that is made of a source, the first where there are several; None: nothing is."""
    return next((one for one in inputs if one.source == source), None)


def encodes(model: ModelConfig, inputs: Iterable[Input]) -> bool:
    """Whether pictures are encoded by the model's codec: those that inputs are made of, or a video's."""
    return model.noise_scale is not None or any(one.pictured for one in inputs)


def controls_of(inputs: Iterable[Input]) -> Controls | None:
    """What can be pressed; None: nothing."""
    return next((one.controls for one in inputs if one.controls), None)


@dataclass(frozen=True)
class Views:
    """What a camera sees from in a chunk.

    Attributes:
        poses: camera-to-world, float64 [1 + 4 f, 4, 4]: of the video frame before the chunk, then of its own.
        intrinsics: float64 [1 + 4 f, 4], likewise: fx, cx of the picture's width and fy, cy of its height, in the order
            fx, fy, cx, cy.
        rows: of the controls, of the chunk's video frames.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    rows: list[Any]


# -- how they travel --------------------------------------------------------------------------------------------------

LATENTS, LATENT_FRAMES = "x", 2
"""Name of a chunk's latents [1, C, f, h, w] beside its inputs, and the dimension that counts their frames."""
CARRY = "carry"
"""Beside a chunk's final latents, those of the chunks behind it that were denoised with it."""
SEED = "seed"
"""Beside a chunk's final latents, what entered its last step, where banks are seeded with that."""
FINITE = "finite"
"""Beside a chunk's latents, how many steps have left them finite (`stages.denoise.sampler.finite_steps`)."""
REFERENCE = "reference"
"""The input that the attention sink's own frame is made of."""


def noise_name(behind: int, step: int) -> str:
    """Name of the noise that was given, with which the chunk so many behind the pass's own enters a step."""
    return f"noise{behind}.{step}"


def marked(mark: str, tensors: Given) -> Given:
    """Tensors under the names by which they travel: `MARK.NAME`, with the mark `given`, `epoch` or `sink`."""
    return {f"{mark}.{name}": tensor for name, tensor in tensors.items()}


def part(mark: str, tensors: Given) -> Given:
    """Those of a message that have a mark, by their own names."""
    start = f"{mark}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


# -- inputs that many families have -----------------------------------------------------------------------------------


def per_frame(layers: int, width: int) -> Callable[[np.ndarray], Tensor]:
    """Features [frames, layers * width] as `source.tensors` holds them: [1, layers, width, frames]."""
    return lambda rows: torch.from_numpy(rows).view(len(rows), layers, width).permute(1, 2, 0)[None]


def text(tokens: int, width: int) -> Input:
    """Text rows of a prompt, at most `tokens`, `width` wide; context of cross-attention."""
    return Input("text", Axis.EPOCH, (tokens, width), "prompt", "context", given=(None, width))


def reference(model: ModelConfig) -> tuple[Input, ...]:
    """The latent of a picture, a frame of the attention sink; nothing for a model that takes none."""
    if not model.reference:
        return ()
    shape = (model.network.in_channels, 1, None, None)
    return (Input(REFERENCE, Axis.SINK, shape, "image", "reference_latent", latents=True),)


def scene(frames: int, channels: int, mask: int) -> tuple[Input, Input]:
    """What enters beside a chunk's latents where a stream begins with a picture: `condition`, latents of a video of
    that picture and of grey behind it, and `mask`, 1 for the latent frame that is the picture and 0 for all others.

    Args:
        frames: latent frames of a chunk.
        channels, mask: of the two.
    """

    def first(latents: range) -> Tensor:
        told = torch.tensor([float(latent == 0) for latent in latents])
        return told.view(1, 1, -1, 1, 1).expand(-1, mask, -1, -1, -1)

    shared = {"whole": True, "latents": True, "narrow": True}
    return (
        Input("condition", Axis.LATENT, (channels, frames, None, None), "image", "condition_latents", **shared),
        Input("mask", Axis.LATENT, (mask, frames, None, None), key="condition_mask", entries=first, **shared),
    )
