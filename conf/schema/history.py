"""What a history rule asks beside a window and an attention sink."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError, positive


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
