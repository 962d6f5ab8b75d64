"""Which context rules can run. What a plan cannot be, its builder refuses."""

from __future__ import annotations

from conf.contexts import CONTEXTS
from conf.errors import UserError


def check(context: str) -> None:
    """Refuse what cannot run, before anything loads.

    Raises:
        UserError: says why, and what can.
    """
    missing = CONTEXTS[context].missing
    if missing:
        able = [name for name, rule in CONTEXTS.items() if not rule.missing]
        raise UserError(f"model.context={context}", missing, f"use {' or '.join(able)}")
