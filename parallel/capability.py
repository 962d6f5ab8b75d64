"""Which context rules can run, and how a plan may divide them. What a plan cannot be, its builder refuses."""

from __future__ import annotations

from conf.contexts import CONTEXTS
from conf.errors import UserError
from conf.schema import ModelConfig


def check(context: str) -> None:
    """Refuse what cannot run, before anything loads.

    Raises:
        UserError: says why, and what can.
    """
    missing = CONTEXTS[context].missing
    if missing:
        able = [name for name, rule in CONTEXTS.items() if not rule.missing]
        raise UserError(f"model.context={context}", missing, f"use {' or '.join(able)}")


def undivided(model: ModelConfig) -> str:
    """Why the steps of a block cannot be on different workers; empty: they can."""
    if model.rule.joint:
        return "chunks at all levels see each other in every layer"
    if model.context == "one_bank":
        return "all of them write one bank"
    if model.compress and model.rule.commits:
        return "what a chunk's first step asks for decides what its bank keeps"
    return ""
