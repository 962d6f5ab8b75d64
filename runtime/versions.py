"""Versions of the attention sink: what they are made from, and the messages that make them.

A version is a prefill of the reference (the given one, or the model's own first frame after recalibration) or the
commit of a chunk that joins the attention sink. `clean` context commits every chunk, which is the same pass.
"""

from __future__ import annotations

from dataclasses import replace

from conf.schema import ModelConfig
from parallel.message import Message
from parallel.plan import Plan, Version


def versions(model: ModelConfig) -> tuple[Version, ...]:
    """All versions, in the order they take effect."""
    found = [Version(-1, 0)] if model.reference else []
    if model.context == "same_level":
        found += [Version(j, j + 1, "commit") for j in range(model.sink_frames // model.chunk_frames)]
    if model.recalibrate_chunk is not None:
        found.append(Version(0, model.recalibrate_chunk))
    return tuple(sorted(found, key=lambda v: v.holds))


def references(model: ModelConfig) -> tuple[Version, ...]:
    """Versions that are prefills of a reference."""
    return tuple(v for v in versions(model) if v.kind == "prefill")


def announced(model: ModelConfig) -> dict[tuple[str, int], int]:
    """(kind, chunk) of every version's message, with the chunk it is made from."""
    return {(v.kind, v.holds if v.kind == "prefill" else v.source): v.source for v in versions(model)}


def made_from(plan: Plan, model: ModelConfig, final: Message) -> list[tuple[int, Message]]:
    """What the final latents of a chunk give rise to: (worker, message), one for the first block of every row.

    Args:
        plan: rows.
        model: its versions.
        final: the chunk's last step, with `x` its final latents and `distance` as it came.
    """
    found, x = [], final.tensors["x"]
    for (kind, chunk), source in announced(model).items():
        if source == final.chunk and kind == "prefill":
            # A prefill carries the text of what it is made from: epoch 0, which began with chunk 0.
            found.append(Message(kind, stream=final.stream, chunk=chunk, tensors={"x": x[:, :, :1].clone()}))
    if model.context == "clean" or ("commit", final.chunk) in announced(model):
        tensors = {"x": x, "distance": final.tensors["distance"]}
        found.append(Message("commit", stream=final.stream, chunk=final.chunk, tensors=tensors))
    return to_rows(plan, found)


def to_rows(plan: Plan, messages: list[Message]) -> list[tuple[int, Message]]:
    """Messages for every row of banks, each with its row's number as `step`, addressed to the row's first worker."""
    return [
        (workers[0], replace(message, step=row, tensors=dict(message.tensors)))
        for message in messages
        for row, workers in enumerate(plan.rows)
    ]
