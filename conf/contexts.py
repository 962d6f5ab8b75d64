"""Context rules: which history a model was trained to read. What follows from a rule is said here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ContextRule:
    """What a model's history means for its banks and its passes.

    Attributes:
        history: the history a step reads, in words.
        bank_per_step: whether every step has a bank of its own, which it also writes; else all steps read one.
        commits: whether every finished chunk is written to the bank by a clean pass, which the next chunk waits for.
        joint: whether chunks at all levels are denoised by one pass, in which they see each other.
        seeded: whether what every bank holds of the first chunk is what that chunk's last step wrote.
        missing: why the rule cannot run yet; empty if it can.
    """

    history: str
    bank_per_step: bool
    commits: bool
    joint: bool = False
    seeded: bool = False
    missing: str = ""

    def level(self, step: int) -> int:
        """The bank that a step reads."""
        return step if self.bank_per_step else 0

    def levels(self, steps: int) -> int:
        """Banks per layer of a model with so many steps."""
        return steps if self.bank_per_step else 1


CONTEXTS = {
    "same_level": ContextRule("each step reads what earlier chunks wrote at the same step", True, False),
    "clean": ContextRule("all steps read one bank, written when a chunk is finished", False, True),
    "stream_batch": ContextRule(
        "each step reads what earlier chunks wrote at the same step, and of the first chunk what its last step wrote",
        True,
        False,
        seeded=True,
    ),
    "one_bank": ContextRule(
        "all steps read and write one bank, which keeps a chunk's last step until it is full, and then its first one",
        False,
        False,
    ),
    "joint_window": ContextRule(
        "chunks at all levels see each other in one pass, beside finished ones", False, True, joint=True
    ),
    "output_level": ContextRule(
        "each step reads at its output level", True, False, missing="the second write pass is not built"
    ),
}
