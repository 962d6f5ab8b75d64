"""Which context rule runs under which plan: derived from what passes read and write, and refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError


@dataclass(frozen=True)
class ContextRule:
    """What a model's history means for scheduling.

    Attributes:
        history: the noise level of the history a step reads.
        overlap: whether the steps of consecutive chunks may run at the same time.
        missing: why the rule cannot run yet; empty if it can.
    """

    history: str
    overlap: bool
    missing: str = ""


CONTEXTS = {
    "same_level": ContextRule("each step reads what earlier chunks wrote at the same step", overlap=True),
    "clean": ContextRule("all steps read one bank, written when a chunk is finished", overlap=False),
    "joint_window": ContextRule("one forward over a window of rising noise", False, "the joint forward is not built"),
    "output_level": ContextRule("each step reads at its output level", True, "the second write pass is not built"),
}


def check(context: str) -> None:
    """Refuse what cannot run, before anything loads. (What a plan cannot be, its builder refuses.)

    Raises:
        UserError: says why, and what can.
    """
    missing = CONTEXTS[context].missing
    if missing:
        able = [name for name, rule in CONTEXTS.items() if not rule.missing]
        raise UserError(f"model.context={context}", missing, f"use {' or '.join(able)}")
