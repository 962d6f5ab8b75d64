"""Names of models on the Hugging Face hub, `org/name` or `org/name/FILE`, found in the hub's cache on this machine.

The cache's layout is documented: `models--ORG--NAME/refs/main` holds a commit, `snapshots/COMMIT` its files. Nothing is
downloaded here, and no library of the hub is needed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from conf import paths
from conf.paths import is_folder, is_there

NAME = re.compile(r"(?P<org>\w[\w.-]*)/(?P<name>\w[\w.-]*)(/(?P<file>[^/].*))?")
FILE = re.compile(r".*\.(safetensors|pt|pth|ckpt|bin|gguf|json)")
"""A path of two parts that ends so is a file in a folder, and no name of a model."""


def cache() -> Path:
    """Where the hub's own tools keep what they download."""
    for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if root := os.environ.get(name):
            return Path(root).expanduser() / inside
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface/hub"


def _parsed(path: str) -> re.Match | None:
    """The parts of a name; None: it is a path, and no name of a model."""
    match = NAME.fullmatch(path)
    return match if match and not FILE.fullmatch(match["name"]) and not is_folder(match["org"]) else None


def found(path: str | None) -> str | None:
    """As `paths.found`; of a name that is no path, what the cache holds of it, if it does."""
    path = paths.found(path)
    if path is None or is_there(path) or (match := _parsed(path)) is None:
        return path
    folder = cache() / f"models--{match['org']}--{match['name']}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs/main").read_text().strip()
    except OSError:  # downloaded by its commit, or not at all
        snapshots = list((folder / "snapshots").glob("*"))
        snapshot = snapshots[0] if len(snapshots) == 1 else folder / "snapshots/none"
    there = snapshot / (match["file"] or "")
    return str(there) if is_there(there) else path


def missing(path: str | Path) -> tuple[str, str]:
    """(rule, remedy) for a path where nothing is: a name of the hub can be downloaded."""
    if (match := _parsed(str(path))) is None or match["file"]:
        return "no such file or folder", "check the path"
    return "no such file or folder, nor a model in the Hugging Face cache", f"check it, or run: hf download {path}"
