"""Files that ship with Everframe, found from any working folder."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def found(path: str | None) -> str | None:
    """`path` itself if something is there (or it is absolute, or `-`), else beside Everframe if something is there."""
    if path is None or path == "-" or Path(path).is_absolute() or _is_there(Path(path)):
        return path
    return str(ROOT / path) if _is_there(ROOT / path) else path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # a name too long for a file, or a folder that may not be looked into
