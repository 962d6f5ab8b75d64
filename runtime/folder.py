"""Folders of a run on several hosts: all of them must see the same one."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from conf.errors import UserError
from parallel.address import home
from runtime.board import Board

LOOK_S = 5.0
"""Longest wait for a file that another host has made: network file systems tell of it late."""
POLL_S = 0.05


OUTPUT = "output_dir"


def strangers(
    board: Board, folder: Path, members: Sequence[int], wrote: bool, timeout_s: float, setting: str = OUTPUT
) -> dict[int, str]:
    """Which members do not see the folder that one of them has made, and what they see instead. All of them call it and
    get the same answer. Where all are on one host, nothing is written.

    Args:
        board: of this member, told apart by its index.
        folder: there is one of that name at least where it was made.
        members: indices on the board; -1 is the launcher.
        wrote: whether this member has made it, as exactly one has.
        timeout_s: longest wait for each of the others.
        setting: that names the folder, or what it is in.

    Raises:
        Abandoned, PeerLost: as `Board.wait`.
    """
    if len(set(_all(board, f"{setting}/home", members, home("mnt"), timeout_s).values())) == 1:
        return {}
    sign, why = folder / f".everframe-{uuid.uuid4().hex}", ""
    if wrote:
        try:
            sign.touch()
        except OSError as error:
            why = f"cannot write there on {platform.node()} ({error.strerror})"
        board.tell(f"folder/{setting}/sign", [board.index, "" if why else sign.name])
    board.wait(f"folder/{setting}/sign", timeout_s)
    writer, name = board.told(f"folder/{setting}/sign")
    if name and not _appears(folder / name):
        why = f"does not see on {platform.node()} what {_named(writer)} has written there"
    seen = _all(board, f"{setting}/why", members, why, timeout_s + LOOK_S)
    if wrote:
        with suppress(OSError):
            sign.unlink()
    return {member: why for member, why in seen.items() if why}


def require_shared(
    board: Board, folder: Path, members: Sequence[int], wrote: bool, timeout_s: float, setting: str = OUTPUT
) -> None:
    """Refuse a folder that not all members see; the same at each of them. Arguments as of `strangers`, and its errors.

    Raises:
        UserError: a member is on a host that does not share the folder.
    """
    if wrong := strangers(board, folder, members, wrote, timeout_s, setting):
        member, why = next(iter(wrong.items()))
        raise UserError(
            f"{setting}={folder}",
            f"{_named(member)} {why}",
            "give a folder on a file system that all hosts share",
        )


def _all(board: Board, what: str, members: Sequence[int], value: str, timeout_s: float) -> dict[int, str]:
    """What every member told, this one `value`."""
    board.tell(f"folder/{what}/{board.index}", value)
    for member in members:
        board.wait(f"folder/{what}/{member}", timeout_s)
    return {member: board.told(f"folder/{what}/{member}") for member in members}


def _named(member: int) -> str:
    return "the launcher" if member < 0 else f"worker {member}"


def _appears(path: Path) -> bool:
    end = time.monotonic() + LOOK_S
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True
