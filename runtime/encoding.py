"""A stream's inputs as tensors: what `source.tensors` gives of them, or what their encoders make of their sources."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from conf.errors import UserError
from conf.schema import ModelConfig
from runtime.encoders import Encoders, Picture, frames_of
from runtime.prompts import Prompts
from runtime.sources import Sources
from stages.build import torch_dtype
from stages.controls import Row
from stages.inputs import FRAMES_PER_LATENT, Axis, Given, Input, Views, made_of, on

log = logging.getLogger(__name__)


class Encoding:
    """Everything of one stream that is encoded.

    Args:
        model, picture: of the stream.
        encoders: shared by all streams here; those of what is given are not loaded.
        sources: what drives the stream, open.
        prompts: of the stream.

    Attributes:
        private: whether what is typed is nobody else's.
        before: entries of chunks before that the next chunk's inputs reach back to, by input.
        grey: whether a grey picture stands for the one that inputs are made of, since none was given.

    Raises:
        UserError: a prompt that nothing here could read.
    """

    def __init__(self, model: ModelConfig, picture: Picture, encoders: Encoders, sources: Sources, prompts: Prompts):
        self.model, self.picture, self.encoders, self.inputs = model, picture, encoders, encoders.inputs
        self.tensors, self.sound, self.image, self.prompts = sources.tensors, sources.sound, sources.image, prompts
        self.private = sources.private
        self._sent = sources.sent
        self._rows: Given = {}
        self.before: Given = {}
        wanted = [one for one in self.inputs if one.source == "image" and not self._lasts(one)]
        self.grey = self.image is None and bool(wanted)
        self._load_encoders()

    def _has(self, key: str) -> bool:
        return bool(key) and self.tensors is not None and self.tensors.has(key)

    def _lasts(self, one: Input) -> bool:
        return self.tensors is not None and self.tensors.lasts(one)

    def _given(self, key: str, shape, dtype: torch.dtype | None = torch.float32) -> Tensor | None:
        return self.tensors.get(key, shape, dtype) if key and self.tensors else None

    def _in_force(self, one: Input, chunk: int) -> str | None:
        return self.tensors.in_force(one.key, chunk) if one.key and self.tensors else None

    def _load_encoders(self) -> None:
        """Those of what is not given."""
        self.text_encoder = None
        if made_of(self.inputs, "prompt") is None and (prompt := self.prompts.first_told()):
            raise UserError(
                f"stream.prompt={prompt}", f"model={self.model.name} takes no prompt", "set stream.prompt= to nothing"
            )
        for one in self.inputs:
            if one.source == "prompt":
                self.text_encoder = None if self._has(one.key) else self.encoders.text
                self._refuse_unread_prompt(one)
            elif one.axis is Axis.EPOCH:
                self._refuse_unseen_picture(one)
                self.state(one, 0)  # what does not fit is refused at once
            elif one.axis.with_chunk:
                _ = self.encoders.of(one)
                if one.whole:
                    self._given_own(one, 0)  # likewise
                if not (self._lasts(one) or self._has(f"{one.key}.000000")):
                    _ = self.encoders.ear(one), one.pictured and self._scene

    def _refuse_unread_prompt(self, one: Input) -> None:
        """A model whose text states are given has nothing that could read a prompt."""
        if self.text_encoder is not None or self._has(one.key):
            return
        if prompt := self.prompts.first_told():
            raise UserError(
                f"stream.prompt={prompt}",
                f"model={self.model.name} has no text encoder here",
                f"give its text states as `{one.key}` in source.tensors",
            )
        log.warning("source.tensors gives no `%s`: the text states of model=%s are zeros", one.key, self.model.name)

    def _refuse_unseen_picture(self, one: Input) -> None:
        """Published weights see a picture by an encoder of theirs: without it they would be shown none."""
        if not one.described or self._has(one.key) or self.encoders.viewer(one) is not None:
            return
        if self.image is not None and self.model.checkpoint is not None:
            raise UserError(
                "source.image",
                f"model={self.model.name} has no image encoder here",
                f"name its file as model.clip.checkpoint, or give `{one.key}` in source.tensors",
            )
        log.warning("source.tensors gives no `%s`: the picture's rows of model=%s are zeros", one.key, self.model.name)

    # -- of a picture -------------------------------------------------------------------------------------------------

    @property
    def _picture(self) -> Tensor:
        """The picture [3, H, W]; mid-grey where none is given."""
        return torch.zeros(3, self.picture.height, self.picture.width) if self.image is None else self.image

    @cached_property
    def _scene(self) -> Tensor:
        """Latents of it and of the grey that follows, [1, C, n, h, w]: the last one holds for ever."""
        return self.encoders.scene(self._picture, keep=not self._sent)

    def _rows_of(self, one: Input) -> Tensor:
        """Its rows, which are those of every epoch."""
        if one.name not in self._rows:
            self._rows[one.name] = self.encoders.rows(one, self._picture, keep=not self._sent)
        return self._rows[one.name]

    # -- of the attention sink ----------------------------------------------------------------------------------------

    def sink(self, encode: bool) -> Given:
        """The attention sink's inputs: what is given of them, and of the others the picture held still, mid-grey where
        none is given; with `encode` False those that are given alone."""
        inputs = on(self.inputs, Axis.SINK)
        found = {one.name: given for one in inputs if (given := self._given_sink(one)) is not None}
        missing = [one for one in inputs if one.name not in found]
        return found | self._still(missing) if missing and encode else found

    def _given_sink(self, one: Input) -> Tensor | None:
        return self._given(one.key, (*one.given_shape[: one.at + 1], *self.picture.latent))

    def _still(self, missing: list[Input]) -> Given:
        """A causal encoder gives the picture's own latent first."""
        counts = {one.name: one.shape[one.at - 1] or self.model.network.before for one in missing}
        still = self.encoders.still(self._picture, max(counts.values()), keep=not self._sent)
        return {name: still[:, :, :count] for name, count in counts.items()}

    # -- of an epoch --------------------------------------------------------------------------------------------------

    def began(self, one: Input, chunk: int, first: int) -> int:
        """The chunk with which what holds of an input at `chunk` began, in a stream that goes on with chunk `first`."""
        if key := self._in_force(one, chunk):
            # What was in force when a stream goes on began before that.
            return max(int(key.removeprefix(one.key).removeprefix(".") or 0), first - 1)
        return self.prompts.epoch(chunk) if one.source == "prompt" else 0

    def state(self, one: Input, chunk: int, prompt: str | None = None) -> Tensor:
        """What `source.tensors` gives of an input at a chunk, or a prompt's rows; `prompt` None: the one that holds."""
        if key := self._in_force(one, chunk):
            return self._given(key, one.given_shape)
        if one.described and self.encoders.viewer(one) is not None:
            return self._rows_of(one)
        if one.source != "prompt" or self.text_encoder is None:
            return torch.zeros(one.full() if one.described else (1, 1, *one.shape[1:]))
        prompt = self.prompts.text(self.prompts.epoch(chunk)) if prompt is None else prompt
        if unknown := self.text_encoder.ids(prompt)[1]:
            # What somebody types in a session is nobody else's.
            what = f"{len(unknown)} word{'s' * (len(unknown) > 1)} of it" if self.private else ", ".join(unknown)
            log.warning("prompt: model=%s does not know %s", self.model.name, what)
        with torch.inference_mode():
            return self.text_encoder(prompt)

    # -- of a chunk ---------------------------------------------------------------------------------------------------

    def own(
        self, one: Input, chunk: int, count: int, taken: list[Row] | None, views: Views | None = None
    ) -> Tensor | None:
        """An input's own entries in a chunk of `count` video frames: of what is given, or of its source's rows.

        Args:
            taken: rows of what was pressed, one a video frame, which all inputs made of actions are given: as int64
                [4 f] indices, or float64 [4 f, keys + axes]; None: nothing can be.
            views: what the one that is made of a camera sees from.
        """
        given = self._given_own(one, chunk)
        if one.source == "audio":
            given = self._heard(one, count, given)
        elif given is None:
            given = self._made(one, chunk, taken, views)
        if given is None:
            return None
        encoder = self.encoders.of(one)
        if encoder is not None:
            with torch.inference_mode():
                given = encoder.tokens(given)
        return given.to(torch_dtype(self.model.dtype)) if one.narrow else given

    def _made(self, one: Input, chunk: int, taken: list[Row] | None, views: Views | None) -> Tensor | None:
        """What the source of an input gives, other than sound, or where the chunk stands; None: nothing does."""
        if one.source == "actions":
            return one.rows(self._per_latent(taken))
        if one.source == "camera":
            return one.rows(self._views(views))
        if one.source == "image":
            last = self._scene.shape[one.at] - 1
            return self._scene[:, :, [min(latent, last) for latent in self.model.frames(chunk)]]
        if one.entries:
            found = one.entries(self.model.frames(chunk))
            return found.expand(*found.shape[:-2], *self.picture.latent) if one.latents else found
        return None

    def _given_own(self, one: Input, chunk: int) -> Tensor | None:
        """What `source.tensors` gives of an input's own entries in a chunk, if it does."""
        if not self._has(one.key):
            return None
        shape = self._chunk_shape(one)
        if not one.whole:
            return self._given(f"{one.key}.{chunk:06d}", shape)
        frames = self.model.frames(chunk)
        if one.axis is Axis.FRAME:
            first, count = frames_of(self.model, chunk)
            frames = range(first, first + count)
        found = self.tensors.entries(one.key, (*shape[: one.at], None, *shape[one.at + 1 :]), one.at, frames)
        return torch.from_numpy(self._per_latent(found[0].numpy()))[None] if one.axis is Axis.FRAME else found

    def _heard(self, one: Input, count: int, given: Tensor | None) -> Tensor:
        if given is not None:
            self.sound.skip(count)
            return given
        return one.rows(self._per_latent(self.sound.frames(count)))

    def whole(self, own: dict[str, Tensor | None]) -> Given:
        """Inputs of a chunk that is really made, with what they reach back to; those that nothing is said of are left
        out."""
        made = {}
        for one in self.inputs:
            if (entries := own.get(one.name)) is not None:
                made[one.name] = one.within(entries, self.before.get(one.name))
                if one.reach:
                    self.before = self.before | {one.name: one.left(made[one.name])}
        return made

    def _chunk_shape(self, one: Input) -> tuple[int | None, ...]:
        """What `source.tensors` must hold of an input of a chunk; latents are of the picture's size."""
        shape = one.given_shape
        return (*shape[:-2], *self.picture.latent) if one.latents else shape

    def _views(self, views: Views) -> Views:
        """The same of a camera: the view before the chunk, and four for every latent frame."""
        before = slice(0, 1)
        poses, intrinsics = (
            np.concatenate([of[before], self._per_latent(of[1:])]) for of in (views.poses, views.intrinsics)
        )
        return Views(poses, intrinsics, list(self._per_latent(views.rows)))

    def _per_latent(self, rows: list | np.ndarray) -> np.ndarray:
        """Four rows for every latent frame: the only frame of a stream's lone first latent stands for all four."""
        missing = FRAMES_PER_LATENT * self.model.chunk_frames - len(rows)
        return np.concatenate([np.repeat(np.asarray(rows)[:1], missing, 0), rows]) if missing else np.asarray(rows)
