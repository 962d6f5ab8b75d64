"""What a codec's folder declares, for all who count frames and files and load nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from conf.families import CODECS, needed


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


@cache
def declared(kind: str) -> Declared:
    """What a codec declares.

    Raises:
        UserError: there is no such codec.
    """
    return needed(CODECS, kind, "declared").CODEC
