"""The one exception for everything a user can mend.

`launch.cli` prints it as one line and exits with code 2. Broken invariants of our own stay ordinary
exceptions with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_SAID = 600
"""Characters of a value in a line: more of a path or a text helps nobody."""
LONGEST = 80
"""Characters of a value that are said of it, where it is a word or a number."""
MOST = 10**12
"""Chunks, pixels, bytes and seconds beyond it are slips of a finger."""


class UserError(Exception):
    """A user's mistake: the value, the rule it breaks, and what to do about it.

    Args:
        value: what was found, with its name, e.g. ``model.window_frames=13``.
        rule: what would have been right, e.g. ``(window - sink) is a multiple of chunk_frames=3``.
        remedy: what to do now, e.g. ``use 12 or 15``.
    """

    def __init__(self, value: str, rule: str, remedy: str):
        self.value, self.rule, self.remedy = value, rule, remedy
        said = value if len(value) <= LONGEST_SAID else f"{value[:LONGEST_SAID]}..."
        super().__init__(" ".join(f"{said}: {rule}; {remedy}".split()))

    def __reduce__(self):
        # Travels between processes whole, not as its one line.
        return UserError, (self.value, self.rule, self.remedy)


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X? (known: ...)`: the remedy for a word that is not one of `known`."""
    known = [str(k) for k in known]
    match = _close(word, known)
    if match and len(known) > 12:
        return f"did you mean {match}?"
    listing = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"did you mean {match}? (known: {listing})" if match else f"use one of {listing}"


def _close(word: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)), None)


def choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse `name=value` unless the value is one of `known`."""
    known = list(known)
    if value not in known:
        words = [str(k) for k in known]
        match = _close(value, words)
        remedy = f"did you mean {match}?" if match else "use one of these"
        raise UserError(f"{name}={str(value)[:LONGEST]}", f"must be one of {', '.join(words)}", remedy)


def positive(name: str, value: float | None, most: float = MOST) -> None:
    """Refuse `name=value` unless it is above zero and at most `most` (None means "not set" and passes)."""
    if value is not None and not value > 0:
        raise UserError(f"{name}={str(value)[:LONGEST]}", "must be above zero", "give a positive number")
    _at_most(name, value, most)


def not_negative(name: str, value: float | None, most: float = MOST) -> None:
    """The same, zero allowed."""
    if value is not None and not value >= 0:
        raise UserError(f"{name}={str(value)[:LONGEST]}", "must not be below zero", "give 0 or more")
    _at_most(name, value, most)


def _at_most(name: str, value: float | None, most: float) -> None:
    if value is not None and not value <= most:
        raise UserError(
            f"{name}={str(value)[:LONGEST]}", f"must not be above {most:.15g}", "give less, or null where it may be"
        )
