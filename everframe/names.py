"""Whether the names that Everframe's packages have are its own here.

They are plain words, and whatever comes before them on Python's path takes one silently: a `runtime.py` where Python
was started, a `conf/` with an `__init__.py`, another distribution's `launch`. It costs two milliseconds to see, and an
hour to guess from what would be raised later.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("conf", "devices", "launch", "runtime", "parallel", "serve", "stages")
"""Those that every program imports; who runs `distill` or `benchmarks` names them."""
HOME = Path(__file__).parent.parent
EXIT_USER_ERROR = 2
"""As `launch.cli` has it, which may be what is shadowed."""


def check(home: Path = HOME) -> None:
    """Refuse names that are another's.

    Args:
        home: the folder that Everframe's packages are in.

    Raises:
        ImportError: says in one line what is in the way.
    """
    installed = _installed(home)
    for name in PACKAGES:
        if complaint := _taken(home, name, installed):
            raise ImportError(complaint)


def insist(home: Path = HOME) -> None:
    """The same for a command: ends the process with the line and exit code 2."""
    try:
        check(home)
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None


def _taken(home: Path, name: str, installed: dict[str, str]) -> str | None:
    """Who has a name in Everframe's place, as one line; None: nobody."""
    spec, ours = find_spec(name), home / name / "__init__.py"
    if spec is None or not ours.exists():
        return None  # left out here: whoever needs it says so
    place = Path(spec.origin or next(iter(spec.submodule_search_locations)))
    if place.resolve() != ours.resolve():
        rule = f"takes the name of Everframe's `{name}` in {home}"
        return f"{place}: {rule}; rename it, or start Python in another folder or environment"
    if installed.get(f"{name}/__init__.py") not in (None, _digest(ours)):
        return f"{ours}: another distribution has written over Everframe's; install each in an environment of its own"
    return None


def _installed(home: Path) -> dict[str, str]:
    """Digests of packages as pip put them in `home`; empty for a checkout."""
    found: dict[str, str] = {}
    for record in home.glob("everframe-*.dist-info/RECORD"):
        lines = (line.rsplit(",", 2) for line in record.read_text().splitlines() if "/__init__.py," in line)
        found |= {path: digest for path, digest, _ in lines}
    return found


def _digest(file: Path) -> str:
    """As RECORD writes it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
