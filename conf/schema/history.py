"""What a history rule asks beside a window and an attention sink."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError, positive

WAITING = 256
"""Slots of an adaptive attention sink that wait in a bank which several steps write, beside a window's."""


@dataclass
class Compress:
    """What stays of frames that leave the window: single tokens, chosen by what latest queries ask for (arXiv
    2512.05081)."""

    budget_frames: int = 16
    """Latent frames' worth of tokens that are left: the attention sink, what was chosen and the latest frames."""
    recent_frames: int = 4
    """Latest latent frames, which are not chosen from, and whose queries choose."""
    reuse: int | None = 7
    """How often a token may be chosen; null: for ever."""

    def __post_init__(self):
        for name in ("budget_frames", "recent_frames", "reuse"):
            positive(f"model.compress.{name}", getattr(self, name), most=100_000)

    def check(self, chunk: int, window: int, sink: int) -> None:
        """Refuse numbers that do not fit a window; all in latent frames.

        Raises:
            UserError: says which.
        """
        if not chunk <= self.recent_frames <= 2 * chunk:
            raise UserError(
                f"model.compress.recent_frames={self.recent_frames}",
                f"are the chunk of {chunk} frames and up to as many before it",
                f"use {chunk} to {2 * chunk}",
            )
        least = sink + self.recent_frames + 1
        if not least <= self.budget_frames <= window:
            raise UserError(
                f"model.compress.budget_frames={self.budget_frames}",
                f"must be within {least} (attention sink, one frame chosen, latest frames) and the window of {window}",
                f"use {least} to {window}" if least <= window else f"set model.window_frames={least} or more",
            )
        chosen = self.budget_frames - sink - self.recent_frames
        fresh = ((window - self.budget_frames) // chunk + 1) * chunk
        if self.reuse is not None and chosen > fresh:
            raise UserError(
                f"model.compress.reuse={self.reuse}",
                f"needs as many new frames to choose from ({fresh}) as are chosen ({chosen})",
                "set model.compress.reuse=null, or a smaller budget_frames",
            )


def check_slots(window: int, sink: int, chunk: int, first: int, refresh: int | None, adaptive: float | None) -> None:
    """Refuse numbers of a bank of slots that do not fit; all but `adaptive` in latent frames.

    Args:
        first: of the first chunk.
        refresh: the position at which positions begin again.
        adaptive: the cosine below which an attention-sink frame is replaced.

    Raises:
        UserError: says which.
    """
    kept = max(sink, first + 1)
    if window <= kept:
        raise UserError(
            f"model.window_frames={window}",
            f"must hold a frame beside the {kept} that stay (first chunk and one more, sink_frames at least)",
            f"use {kept + 1} or more",
        )
    if refresh is not None and refresh < window:
        raise UserError(
            f"model.refresh_frames={refresh}",
            f"is a position behind the first window of {window} frames",
            f"use {window} or more, or null",
        )
    if adaptive is None:
        return
    if not -1 <= adaptive <= 1:
        raise UserError(f"model.adaptive_sink={adaptive}", "is a cosine", "use -1 to 1, or null")
    for lacking, there in (
        ("sink_frames=1 or more", sink > 0),
        ("chunk_frames=1", chunk == 1),
        ("first_chunk_frames=2 or more", first > 1),
    ):
        if not there:
            rule = f"compares single frames with an attention sink, which needs {lacking}"
            raise UserError(f"model.adaptive_sink={adaptive}", rule, "set model.adaptive_sink=null")
