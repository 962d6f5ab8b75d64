"""Copy the batch scripts for SLURM to where jobs are submitted: makes FOLDER/slurm.

Who works in a checkout has them there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from conf import disk
from conf.errors import UserError
from conf.paths import SHIPPED, is_there
from launch.cli import alone
from launch.command import Command


def copy(folder: Path) -> Path:
    """Make `folder`/slurm; returns it.

    Raises:
        UserError: it is there already, or cannot be written.
    """
    target = folder / "slurm"
    if is_there(target):
        raise UserError(str(target), "is there already", "name another folder, or remove it")
    with disk.writing(str(target)):
        return Path(shutil.copytree(SHIPPED / "slurm", target))


COMMAND = Command("scripts", __doc__, usage="[FOLDER]")


def job(arguments: list[str]) -> None:
    """Copy the scripts and say where they are."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise UserError(" ".join(arguments), "is not one folder", "everframe scripts, or everframe scripts FOLDER")
    print(f"batch scripts: {copy(Path(*arguments))}")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return alone(COMMAND, job, argv)


if __name__ == "__main__":
    sys.exit(main())
