"""What a codec's folder declares, for all who count frames and files and load nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from conf.errors import UserError
from conf.families import CODECS, SETTINGS, known, part


@dataclass(frozen=True)
class Declared:
    """`CODEC` in a folder's `declared.py`.

    Attributes:
        names: of its weights in a published model's folder, files or folders, of which the first that is there counts.
        encoder: the codec whose encoder makes the latents that its decoder reads; that encoder's weights are
            `model.codec.vae`. None: it has its own, in `model.codec.checkpoint` beside the decoder.
        first_frames: video frames of the first latent frame of a stream that was not primed; every other one is 4.
        timed_by_pixels: whether `pixel_s` of a cluster's devices is what its decoder takes.
    """

    names: tuple[str, ...] = ()
    encoder: str | None = None
    first_frames: int = 4
    timed_by_pixels: bool = False


def folder_part(kind: str, module: str) -> ModuleType:
    """A module that every codec's folder has.

    Raises:
        UserError: there is no such folder, or it lacks the module.
    """
    if (found := part(CODECS, kind, module)) is None:
        raise UserError(f"{SETTINGS[CODECS]}={kind}", f"has no {module}.py", f"use one of {', '.join(known(CODECS))}")
    return found


@cache
def declared(kind: str) -> Declared:
    """What a codec declares.

    Raises:
        UserError: there is no such codec.
    """
    return folder_part(kind, "declared").CODEC
