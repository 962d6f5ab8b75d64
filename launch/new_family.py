"""A new model family: `everframe new-family NAME [FOLDER]`.

Writes a folder with a small network that streams as it stands, its YAML and its test, to be changed bit by bit into
what is wanted (docs/new-model.md). Without FOLDER they go where the product's own are; with it to a folder of one's
own, from where Python and Hydra have to find them.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import conf
import stages
from conf import families
from conf.disk import writing
from conf.errors import UserError
from launch.cli import alone
from launch.command import Command

TEMPLATES = Path(__file__).parent / "scaffold"
MODULES = ("init", "sizes", "inputs", "network", "schedule", "keys")
PLACE = "FAMILY"
"""Stands for the name in templates."""
CONFIGS = "configs"
"""Where the YAML of a folder of one's own lies: a `conf` there would stand before Everframe's own on Python's path."""


def targets(name: str, folder: Path | None) -> dict[Path, str]:
    """The template of every file that is written."""
    if folder is None:
        root = Path(stages.__file__).parent
        package, yaml = root / "models" / name, Path(conf.__file__).parent / "model" / f"{name}.yaml"
        test = root.parent / "tests" / "stages" / "models" / f"test_{name}.py"
    else:
        package, yaml = folder / name, folder / CONFIGS / "model" / f"{name}.yaml"
        test = folder / f"test_{name}.py"
    modules = {package / ("__init__.py" if m == "init" else f"{m}.py"): m for m in MODULES}
    return modules | {yaml: "model", test: "test"}


def write(name: str, folder: Path | None = None) -> list[Path]:
    """Write a family's files; returns where they are.

    Raises:
        UserError: it is no name, something is there already, or the disk refuses. Nothing is left half-written.
    """
    said = f"everframe new-family {name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(said, "must be a lower-case name", "use letters, digits and _")
    if name in families.known(families.FAMILIES) or find_spec(name):
        raise UserError(said, "there is a family or a package of that name", "take another name")
    if folder is None and not (Path(stages.__file__).parent.parent / "pyproject.toml").is_file():
        raise UserError(said, "this Everframe is no checkout", f"say where to: everframe new-family {name} FOLDER")
    files = targets(name, folder)
    for path in (*files, next(iter(files)).parent):
        if os.path.lexists(path):
            raise UserError(said, f"{path} is there already", "take another name")
    try:
        for path, template in files.items():
            with writing(f"{said}: {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text((TEMPLATES / f"{template}.txt").read_text().replace(PLACE, name))
    except UserError:
        shutil.rmtree(next(iter(files)).parent, ignore_errors=True)
        for path in files:
            path.unlink(missing_ok=True)
        raise
    return list(files)


COMMAND = Command("new-family", __doc__, usage="NAME [FOLDER]")


def job(arguments: list[str]) -> None:
    """Write the files of a family and say what to try."""
    if len(arguments) not in (1, 2) or any(a.startswith("-") for a in arguments):
        raise UserError(
            "everframe new-family", "needs a name, and may be given a folder", "say everframe new-family NAME"
        )
    name, folder = arguments[0], Path(arguments[1]).absolute() if len(arguments) == 2 else None
    for path in write(name, folder):
        print(path)
    found = "everframe stream"
    if folder is not None:
        found = f"PYTHONPATH={folder} everframe stream --config-dir {folder / CONFIGS}"
    print(f"\nTry it: {found} model={name} plan=timestep stream.chunks=10 stream.prompt=hello")
    print("What to change next: docs/new-model.md")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return alone(COMMAND, job, argv)


if __name__ == "__main__":
    sys.exit(main())
