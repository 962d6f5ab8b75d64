"""Files that ship with Everframe, found from any working folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from conf.errors import UserError

SHIPPED = Path(__file__).parent.parent / "everframe"
"""What ships beside code: `assets/` and `slurm/`. In a checkout these are links to the folders of that name."""
ADDRESS = "tcp://"
"""What an address begins with, where a program stands in a file's place (`stages.link`)."""
ADDRESSES = (ADDRESS, "tls://")
"""Likewise, in the clear and encrypted."""


def found(path: str | None) -> str | None:
    """`path` itself if something is there (or it is absolute, `-` or an address), else what ships under that name.

    Raises:
        UserError: it is a path in `assets/`, as configurations name what ships, and neither is there.
    """
    if not path or path == "-" or path.startswith(ADDRESS) or Path(path).is_absolute() or is_there(path):
        return path
    if is_there(shipped := SHIPPED / path):
        return str(shipped.resolve())
    if Path(path).parts[0] == "assets":
        rule = f"is neither here nor among the files that came with Everframe ({SHIPPED})"
        raise UserError(path, rule, "copy it there from Everframe's repository or its wheel, or name another")
    return path


def is_stream(path: str | None) -> bool:
    """Whether bytes come there as they are, from standard input or from a program that it connects with."""
    return path is not None and (path == "-" or path.startswith(ADDRESS))


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
    """Whether what is read there comes as it happens: from standard input, a program or a named pipe."""
    return is_stream(path) or (bool(path) and _seen(Path(path).is_fifo))


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


def inside(path: str | Path, folder: str | Path) -> Path | None:
    """`path` as it is called in a folder, whether or not anything is there; None: it lies elsewhere."""
    whole, root = (Path(os.path.normpath(Path(one).absolute())) for one in (path, folder))
    return whole.relative_to(root) if whole.is_relative_to(root) else None


def _seen(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except OSError:
        return False
