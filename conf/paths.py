"""Files that ship with Everframe, found from any working folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def found(path: str | None) -> str | None:
    """`path` itself if something is there (or it is absolute, or `-`), else beside Everframe if something is there."""
    if path is None or path == "-" or Path(path).is_absolute() or is_there(path):
        return path
    return str(ROOT / path) if is_there(ROOT / path) else path


def live(path: str | None) -> str | None:
    """`-` where `path` is standard input by another name, such as /dev/stdin; else `path` itself.

    Whoever opens it would take bytes from whoever reads `-`, and in another process it is something else. A regular
    file is read by each from its beginning.
    """
    if not path:
        return path
    try:
        there, read = Path(path).stat(), os.fstat(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # there is no such file, or no standard input
        return path
    return "-" if os.path.samestat(there, read) and not stat.S_ISREG(there.st_mode) else path


def is_live(path: str | None) -> bool:
    """Whether what is read there comes as it happens: from standard input (`-`) or a named pipe."""
    return path == "-" or (bool(path) and _seen(Path(path).is_fifo))


def is_there(path: str | Path) -> bool:
    """Whether something is there, as far as may be seen: `Path.exists` raises OSError where a name is too long for a
    file, or a folder may not be looked into."""
    return _seen(Path(path).exists)


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; else as `is_there`."""
    return _seen(Path(path).is_file)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; else as `is_there`."""
    return _seen(Path(path).is_dir)


def _seen(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except OSError:
        return False
