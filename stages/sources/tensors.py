"""Conditioning that was computed elsewhere, from a safetensors file.

| key | shape | meaning |
|---|---|---|
| `KEY` | as the input declares it | of an input of the attention sink, or of an epoch from the start |
| `KEY.000005` | likewise | of an input of chunk 5, or of an epoch from chunk 5 on |
| `KEY` | likewise, of any length | of an input that is given for the whole stream (`Input.whole`) |
| `noise.000000.step.0` | [1, C, c, h, w] | input of a step of a chunk |
| `sink_distance` | [chunks, steps] | integers |
| `video_latents` | [1, C, n, h, w] | of video to video: what enters with noise, of all chunks |
| `video` | [1, 3, frames, H, W] | likewise, pictures in [-1, 1] |
| `camera_poses` | [frames, 4, 4] | of a model that is driven by a camera: its poses |
| `intrinsics` | [4] or [frames, 4] | beside them, in pixels of a picture of 832 x 480 |

What a model's inputs are called there is the family's to say (`stages.inputs.Input.key`). Encoders of what is given
need not be loaded. Tensors are read from disk when they are asked for.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conf import disk
from conf.errors import UserError, nearest
from stages.inputs import Axis, Input

COMMON = {"noise.000000.step.0": r"noise\.\d{6,}\.step\.\d+", "sink_distance": "sink_distance"}
"""Keys that every model has: an example, and what they look like."""


VIDEO = {"video_latents": "video_latents", "video": "video"}
"""Keys that a model has which draws a video anew."""
POSES, INTRINSICS = "camera_poses", "intrinsics"
CAMERA = {POSES: POSES, INTRINSICS: INTRINSICS}
"""Keys that a model has which is driven by a camera."""
FRAMES = 2
"""The dimension that counts their frames."""


def keys_of(inputs: Iterable[Input], video: bool = False) -> dict[str, str]:
    """Keys that a model's file may have: by an example, what they look like; `video`: it draws a video anew."""
    found = COMMON | (VIDEO if video else {})
    for one in inputs:
        if one.source == "camera":
            found |= CAMERA
        key = re.escape(one.key)
        if not one.key:
            continue
        if one.whole:
            found[one.key] = key
        elif one.axis.with_chunk:
            found[f"{one.key}.000000"] = rf"{key}\.\d{{6,}}"
        elif one.axis is Axis.SINK:
            found[one.key] = key
        else:
            found[one.key], found[f"{one.key}.000000"] = key, rf"{key}\.\d{{6,}}"
    return found


class TensorsFile:
    """A lazily read file of precomputed conditioning.

    Args:
        path: the safetensors file.
        model: its name, for messages.
        inputs: that it may give.
        video: whether it draws a video anew.

    Raises:
        UserError: the file is missing, empty, none or broken, or holds a key that means nothing here, or rows of an
            epoch that do not fit.
    """

    def __init__(self, path: str | Path, model: str, inputs: Iterable[Input], video: bool = False):
        inputs = tuple(inputs)
        self.path, self._name = path, f"source.tensors={path}"
        disk.readable(self._name, path, "give a safetensors file")
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(
                self._name, f"is no whole safetensors file ({error})", "write it again with safetensors.torch.save_file"
            ) from error
        self.keys = tuple(sorted(self._file.keys()))
        if not self.keys:
            raise UserError(self._name, "holds no tensor", "give a file with some, or leave it out")
        known = keys_of(inputs, video)
        for key in self.keys:
            if not any(re.fullmatch(pattern, key) for pattern in known.values()):
                raise UserError(f"{self._name}: {key}", f"is not a name that model={model} takes", _nearest(key, known))
        self._epochs = {
            one.key: sorted((_begins(k, one.key), k) for k in self.keys if _of(k, one.key))
            for one in inputs
            if one.key and one.axis is Axis.EPOCH
        }
        for one in inputs:  # a prompt that does not fit would end the stream where it begins
            for _, key in self._epochs.get(one.key, ()):
                rows = self._checked(key, one.given_shape).get_shape()[one.at]
                if one.shape[0] is not None and rows > one.shape[0]:
                    rule = f"has {rows} rows, model={model} takes {one.shape[0]}"
                    raise UserError(f"{self._name}: {key}", rule, "cut or pad it")

    def has(self, prefix: str) -> bool:
        """Whether there is a key `prefix`, or one that goes on after it with a dot."""
        return any(key == prefix or key.startswith(f"{prefix}.") for key in self.keys)

    def lasts(self, one: Input) -> bool:
        """Whether an input is given for all of a stream, so that nothing else has to make it."""
        return bool(one.key) and (one.whole or not one.axis.with_chunk) and self.has(one.key)

    def get(
        self, key: str, shape: Sequence[int | None] | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """The tensor under `key`, or None if the file does not hold it.

        Args:
            key: one of the names above.
            shape: what it must be; None entries may be anything.
            dtype: converted to this; None leaves it as it is.

        Raises:
            UserError: the shape is another, or numbers with fractions would have to become integers.
        """
        if key not in self.keys:
            return None
        if shape is not None:
            self._checked(key, shape)
        tensor = self._file.get_tensor(key)
        if dtype is None or dtype == tensor.dtype:
            return tensor
        if tensor.is_floating_point() and not dtype.is_floating_point:
            raise UserError(f"{self._name}: {key}", f"holds {tensor.dtype}, not integers", "save it as int64")
        return tensor.to(dtype)

    def frames(self, key: str, shape: Sequence[int | None], first: int, count: int) -> Tensor | None:
        """Frames `first` up to `first + count` of the tensor under `key`, float32; None where it has not so many.

        Args:
            shape: what the whole tensor must be; its third dimension counts frames.

        Raises:
            UserError: the shape is another.
        """
        view = self._checked(key, shape)
        if first + count > view.get_shape()[FRAMES]:
            return None
        return view[:, :, first : first + count].float()

    def entries(self, key: str, shape: Sequence[int | None], at: int, wanted: range) -> Tensor | None:
        """Some consecutive entries of the tensor under `key`, float32; beyond its end the last one holds. No others are
        read. None if the file does not hold it.

        Args:
            shape: what the whole tensor must be; None entries may be anything.
            at: the dimension that counts its entries.

        Raises:
            UserError: the shape is another, or there is no entry.
        """
        if key not in self.keys:
            return None
        view = self._checked(key, shape)
        count = view.get_shape()[at]
        if not count:
            raise UserError(f"{self._name}: {key}", "has no entry", "give one for the first frame at least")
        own = slice(min(wanted.start, count - 1), min(wanted.stop, count))
        found = view[(*[slice(None)] * at, own)].float()
        last = found.narrow(at, found.shape[at] - 1, 1)
        return torch.cat([found, *[last] * (len(wanted) - found.shape[at])], at)

    def frame_count(self, key: str, shape: Sequence[int | None]) -> int:
        """How many frames there are under `key`; raises as `frames`."""
        return self._checked(key, shape).get_shape()[FRAMES]

    def _checked(self, key: str, shape: Sequence[int | None]) -> Any:
        """The tensor under `key`, not read yet; raises UserError where its shape is another."""
        view = self._file.get_slice(key)
        found, expected = list(view.get_shape()), ["any" if n is None else n for n in shape]
        if len(found) != len(expected) or any(e not in ("any", f) for e, f in zip(expected, found, strict=True)):
            raise UserError(
                f"{self._name}: {key}",
                f"expected {_listed(expected)}, found {_listed(found)}",
                "check that it was made for this model and picture size",
            )
        return view

    def in_force(self, key: str, chunk: int) -> str | None:
        """The key of what an epoch's input `key` is at `chunk`: the last one that begins at it or before."""
        begins = self._epochs[key]
        at = bisect.bisect_right(begins, chunk, key=lambda entry: entry[0])
        return begins[at - 1][1] if at else None


def _begins(key: str, name: str) -> int:
    """The chunk with which what `NAME.CHUNK` holds begins; without a number the first."""
    return int(key.removeprefix(name).removeprefix(".") or 0)


def _of(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _nearest(key: str, known: Iterable[str]) -> str:
    """The known name that `key` was probably meant to be, with its own numbers where they fit."""
    return nearest(re.sub(r"\d{2,}", "000000", key), known)


def _listed(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
