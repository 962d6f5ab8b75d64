"""The batch scripts, copied to where jobs are submitted: `python -m launch.scripts [FOLDER]` makes FOLDER/slurm.

Who works in a checkout has them there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from conf import disk
from conf.errors import UserError
from conf.paths import SHIPPED, is_there
from launch.cli import EXIT_USER_ERROR


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


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
            raise UserError(" ".join(arguments), "is not one folder", "everframe scripts, or everframe scripts FOLDER")
        print(f"batch scripts: {copy(Path(*arguments))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
