"""Versions of the attention sink: what they are made from, and from when they hold.

A version is a prefill of the reference (the given one, or the model's own first frame after recalibration) or the
commit of a chunk that joins the attention sink. `clean` context commits every chunk, which is the same pass.
"""

from __future__ import annotations

from conf.schema import ModelConfig
from parallel.plan import Version


def versions(model: ModelConfig) -> tuple[Version, ...]:
    """All versions, in the order they take effect."""
    found = [Version(-1, 0)] if model.reference else []
    if not model.rule.commits:
        found += [Version(j, j + 1, "commit") for j in range(model.sink_frames // model.chunk_frames)]
    if model.recalibrate_chunk is not None:
        found.append(Version(0, model.recalibrate_chunk))
    return tuple(sorted(found, key=lambda v: v.holds))


def references(model: ModelConfig) -> tuple[Version, ...]:
    """Versions that are prefills of a reference."""
    return tuple(v for v in versions(model) if v.kind == "prefill")
