"""Versions of the attention sink, as a plan knows them: what they are made from, and from when they hold.

A version is a prefill of the reference (the given one, or the model's own first frame after recalibration) or the
commit of a chunk that joins the attention sink. `clean` context commits every chunk, which is the same pass.
"""

from __future__ import annotations

from conf.schema import ModelConfig
from parallel.plan import Version
from stages.denoise.schedule import schedule_of


def versions(model: ModelConfig) -> tuple[Version, ...]:
    """All versions, in the order they take effect."""
    return tuple(Version(*version) for version in schedule_of(model).versions)
