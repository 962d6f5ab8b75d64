"""Slots of a bank: `[fixed tokens | attention sink | ring]` in one buffer per layer.

The attention sink is a family's fixed tokens and the reference frames (if the model has any) followed by the first
`sink` generated frames; the ring holds later ones. Where they go and what is read is said in `stages.denoise.history`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from conf.schema import Adapter, ModelConfig, SinkShift

TOKEN, PLACE, LATENT = "token", "place", "latent"
"""What has an entry in a bank: every token, whose heads the processes of a worker share; every place, which they share;
every latent frame, of which each process has all."""

FIXED, CHOICE = -1, -2
"""The slot of the fixed tokens, which come before all others, and that of what a choice among tokens needs."""

Run = tuple[int, int, int]
"""Neighbouring frames of a pass in neighbouring slots: (offset in the pass, first slot, how many)."""
Slots = tuple[int, int]
"""Neighbouring slots: (first, how many)."""


def runs_of(frames: Iterable[int], slot_of: Callable[[int], int]) -> tuple[Run, ...]:
    """The runs in which frames lie."""
    runs: list[Run] = []
    for offset, frame in enumerate(frames):
        slot = slot_of(frame)
        if runs and runs[-1][1] + runs[-1][2] == slot:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((offset, slot, 1))
    return tuple(runs)


@dataclass(frozen=True)
class Layout:
    """Where a bank keeps what, in latent frames; only fixed tokens, which come first, are no whole frames.

    Attributes:
        tokens: tokens (or an adapter's entries) of a latent frame.
        reference, sink: attention-sink frames that come from a reference / from the first generated frames.
        ring: frames kept beside them, the current chunk included.
        fixed: tokens of the attention sink that never move.
    """

    tokens: int
    reference: int
    sink: int
    ring: int
    fixed: int = 0

    @staticmethod
    def of(model: ModelConfig, tokens: int) -> Layout:
        """Of the tokens' banks, where a latent frame has `tokens`."""
        fixed = model.network.fixed(tokens)
        return Layout(tokens, int(model.reference), 0 if model.slots else model.sink_frames, model.ring_frames, fixed)

    @staticmethod
    def of_adapter(model: ModelConfig, adapter: Adapter, tokens: int) -> Layout:
        """Of an adapter's banks, which hold generated frames only, where a latent frame has `tokens` here."""
        return Layout(tokens if adapter.each == PLACE else 1, 0, model.sink_frames, model.ring_frames)

    @property
    def anchored(self) -> int:
        """Frames of the attention sink."""
        return self.reference + self.sink

    @property
    def frames(self) -> int:
        return self.anchored + self.ring

    @property
    def size(self) -> int:
        """Tokens of a bank."""
        return self.span(0, self.frames).stop

    def span(self, slot: int, count: int) -> slice:
        """The tokens of `count` slots."""
        start = self.fixed + slot * self.tokens
        return slice(start, start + count * self.tokens)

    def slot(self, frame: int) -> int:
        """The slot of generated frame `frame`."""
        return self.reference + frame if frame < self.sink else self.anchored + (frame - self.sink) % self.ring

    def window_start(self, end: int) -> int:
        """The oldest generated frame in the ring once frames before `end` are written."""
        return max(self.sink, end - self.ring)

    def visible(self, end: int) -> int:
        """Slots that hold frames once generated frames before `end` are written: always a prefix."""
        return self.reference + min(end, self.sink) + min(max(end - self.sink, 0), self.ring)

    def sink_positions(self, rule: str, first: int, count: int, shift: SinkShift, distance: int) -> range:
        """Temporal positions of the attention-sink frames that exist when the chunk at `first` reads them.

        `abs`: where they were (the reference just before frame 0). `slot`: just before the oldest frame of the
        window, which is StreamingLLM's numbering by slot up to a common offset. `sink_shift` (arXiv 2512.04677):
        start + max(0, first - (start - distance)), i.e. at `start`, later `distance` ahead of the chunk. `deep`
        (arXiv 2512.05081, as its published code does it): so that it starts as many frames before the chunk as the
        window has, which leaves a gap of a chunk behind it.
        """
        existing = self.reference + min(self.sink, first)
        if rule == "abs" or first < self.sink:
            start = -self.reference
        elif rule == "slot":
            start = self.window_start(first + count) - existing
        elif rule == "deep":
            start = max(0, first - self.sink - self.ring) - self.reference
        else:
            start = shift.start + max(0, first - (shift.start - distance))
        return range(start, start + existing)
