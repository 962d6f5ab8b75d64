"""Conditioning that was computed elsewhere, from a safetensors file.

| key | shape | meaning |
|---|---|---|
| `context` | [1, L, text_dim] | text states from the start |
| `context.000005` | [1, L, text_dim] | text states from chunk 5 on |
| `noise.000000.step.0` | [1, C, c, h, w] | input of a step of a chunk |
| `audio_features.000000` | [1, layers, dim, frames] | of a chunk |
| `reference_latent` | [1, C, 1, h, w] | the reference picture |
| `motion_latents` | [1, C, n, h, w] | what came before the stream |
| `pose_latents.000000` | [1, C, c, h, w] | where the body is, of a chunk |
| `sink_distance` | [chunks, steps] | integers |

Encoders of what is given need not be loaded. Tensors are read from disk when they are asked for.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conf import disk
from conf.errors import UserError, nearest

KNOWN = (
    "context",
    "context.000000",
    "noise.000000.step.0",
    "audio_features.000000",
    "reference_latent",
    "motion_latents",
    "pose_latents.000000",
    "sink_distance",
)
PATTERN = re.compile(
    r"context(\.\d{6,})?|noise\.\d{6,}\.step\.\d+|audio_features\.\d{6,}|reference_latent|motion_latents"
    r"|pose_latents\.\d{6,}|sink_distance"
)


class TensorsFile:
    """A lazily read file of precomputed conditioning.

    Args:
        path: the safetensors file.

    Raises:
        UserError: the file is missing, none or broken, or holds a key that means nothing here.
    """

    def __init__(self, path: str | Path):
        self._name = f"source.tensors={path}"
        disk.readable(self._name, path, "give a safetensors file")
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(
                self._name, f"is no whole safetensors file ({error})", "write it again with safetensors.torch.save_file"
            ) from error
        self.keys = tuple(sorted(self._file.keys()))
        for key in self.keys:
            if not PATTERN.fullmatch(key):
                raise UserError(f"{self._name}: {key}", "is not a name that is known here", _nearest(key))
        self._contexts = sorted((0 if k == "context" else int(k.split(".")[1]), k) for k in self.keys if _is_context(k))

    def has(self, prefix: str) -> bool:
        """Whether there is a key `prefix`, or one that goes on after it with a dot."""
        return any(key == prefix or key.startswith(f"{prefix}.") for key in self.keys)

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
        view = self._file.get_slice(key)
        found = list(view.get_shape())
        if shape is not None:
            expected = ["any" if n is None else n for n in shape]
            if len(found) != len(expected) or any(e not in ("any", f) for e, f in zip(expected, found, strict=True)):
                raise UserError(
                    f"{self._name}: {key}",
                    f"expected {_listed(expected)}, found {_listed(found)}",
                    "check that it was made for this model and picture size",
                )
        tensor = self._file.get_tensor(key)
        if dtype is None or dtype == tensor.dtype:
            return tensor
        if tensor.is_floating_point() and not dtype.is_floating_point:
            raise UserError(f"{self._name}: {key}", f"holds {tensor.dtype}, not integers", "save it as int64")
        return tensor.to(dtype)

    def context_key(self, chunk: int) -> str | None:
        """The key of the text states in force at `chunk`: the last one that begins at it or before."""
        at = bisect.bisect_right(self._contexts, chunk, key=lambda entry: entry[0])
        return self._contexts[at - 1][1] if at else None

    def context_for(
        self, chunk: int, shape: Sequence[int | None] | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """The text states in force at `chunk` (see `get`), or None if none are yet."""
        key = self.context_key(chunk)
        return None if key is None else self.get(key, shape, dtype)


def _is_context(key: str) -> bool:
    return key.split(".")[0] == "context"


def _nearest(key: str) -> str:
    """The known name that `key` was probably meant to be, with its own numbers where they fit."""
    return nearest(re.sub(r"\d{2,}", "000000", key), KNOWN)


def _listed(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
