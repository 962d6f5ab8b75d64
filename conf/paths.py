"""Files that ship with Everframe, found from any working folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def found(path: str | None) -> str | None:
    """`path` itself if something is there (or it is absolute, or `-`), else beside Everframe if something is there."""
    if path is None or path == "-" or Path(path).is_absolute() or is_there(path):
        return path
    return str(ROOT / path) if is_there(ROOT / path) else path


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
