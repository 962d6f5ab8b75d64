"""Secrets that stay off command lines, which every user of a machine can read: `@FILE` stands for what is in a file."""

from __future__ import annotations

from pathlib import Path

from conf.errors import UserError
from conf.paths import ADDRESSES

LONGEST = 4096
"""Characters of a secret, or of an address that holds one."""


def told(setting: str, given: str | None) -> str | None:
    """What was given, or what is in the file that `@FILE` names, without the white space around it.

    Args:
        setting: that takes it, for complaints.

    Raises:
        UserError: the file cannot be read, or holds more or less than one line.
    """
    if given is None or not given.startswith("@"):
        return given
    try:
        with Path(given[1:]).open() as file:
            found = file.read(LONGEST).strip()
    except (OSError, ValueError) as error:
        rule = f"cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})"
        raise UserError(f"{setting}={given}", rule, "name a file that holds it alone") from error
    if len(found.splitlines()) != 1:
        raise UserError(f"{setting}={given}", "must hold one line", "write it there alone")
    return found


def is_address(given: str | None) -> bool:
    """Whether a program is meant, and no file."""
    return given is not None and given.startswith(ADDRESSES)


def unsaid(given: str | None) -> str | None:
    """An address without the token that it ends with, to be shown; anything else as it is."""
    return "/".join(given.split("/")[:3]) if is_address(given) else given
