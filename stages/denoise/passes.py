"""Whole-clip attention: what training and parity checks use in place of banks.

A clip holds its frames in one sequence (clean copies of attention-sink frames first, if there are any), and
one forward covers it all. Which chunk reads what, and at which positions, is a list of views: the same rules
as `Layout`, written for a sequence that never forgets. Nothing is written in place, so gradients flow
through the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.denoise.attention import Attend
from stages.denoise.bank import Layout
from stages.denoise.network import Network
from stages.denoise.rope import Rope, rotate


@dataclass(frozen=True)
class View:
    """Some frames of the sequence reading others.

    Attributes:
        queries: sequence indices (frames) that read.
        keys: sequence indices read.
        query_positions, key_positions: temporal positions of both.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    query_positions: Sequence[int]
    key_positions: Sequence[int]


class ClipPass:
    """Self-attention of a whole clip, view by view. Views must list the sequence's frames in order, once each."""

    def __init__(self, rope: Rope, views: Sequence[View], core: Attend):
        self.core = core
        self.tokens = len(rope.spatial)
        self.views = [(v.queries, v.keys, rope.table(v.query_positions), rope.table(v.key_positions)) for v in views]

    def _take(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        if list(frames) == list(range(frames[0], frames[-1] + 1)):
            return x[:, frames[0] * self.tokens : (frames[-1] + 1) * self.tokens]
        return x.unflatten(1, (-1, self.tokens))[:, list(frames)].flatten(1, 2)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
        if adapter:
            raise ValueError(f"a whole clip has no history for adapter {adapter}")
        return torch.cat(
            [
                self.core(
                    rotate(self._take(q, queries), query_table),
                    rotate(self._take(k, keys), key_table),
                    self._take(v, keys),
                    None,
                )
                for queries, keys, query_table, key_table in self.views
            ],
            dim=1,
        )


def whole_clip(rope: Rope, frames: int, network: Network) -> ClipPass:
    """Bidirectional attention over `frames` frames: the teacher's pass."""
    everything = range(frames)
    return ClipPass(rope, [View(everything, everything, everything, everything)], network.core)


def same_level_views(model: ModelConfig, chunks: int, distance: int | None = None) -> list[View]:
    """Views of `[reference | clean copy of the frame attention sink | chunks]` under `same_level`.

    Chunk i reads what its bank would hold at that level: the reference, the clean copy of attention-sink
    chunks that precede it, and the noisy frames of its window, positioned by the model's rule.

    Args:
        model: window, attention sink and position rules.
        chunks: generated chunks in the clip.
        distance: of `sink_shift`; None: its minimum.
    """
    c, s, r = model.chunk_frames, model.sink_frames, int(model.reference)
    layout, base = Layout.of(model, 1), r + model.sink_frames
    distance = model.sink_shift.distance_min if distance is None else distance
    views = [View(range(r), range(r), range(-r, 0), range(-r, 0))] if r else []
    for first in range(0, s, c):
        # A clean copy reads the reference and the clean copies up to itself, as its prefill does.
        own, read = range(r + first, r + first + c), range(r + first + c)
        views.append(View(own, read, range(first, first + c), range(-r, first + c)))
    for first in range(0, chunks * c, c):
        end = first + c
        anchors = layout.sink_positions(model.positions, first, c, model.sink_shift, distance)
        window = range(first if first < s else layout.window_start(end), end)
        views.append(
            View(
                [base + f for f in range(first, end)],
                [*range(len(anchors)), *(base + f for f in window)],
                range(first, end),
                [*anchors, *window],
            )
        )
    return views
