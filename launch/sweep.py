"""One job of a multirun, for batch systems that number their jobs: `python -m launch.sweep 2 stream.seed=1,2,3 ...`.

Prints job 2's overrides, one a line: those that `python -m launch.stream -m stream.seed=1,2,3 ...` would give it.
"""

from __future__ import annotations

import sys

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from conf.errors import UserError
from launch.cli import EXIT_USER_ERROR


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a multirun, in Hydra's order.

    Raises:
        UserError: Hydra cannot read them.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException as error:
        raise UserError(" ".join(overrides), " ".join(str(error).split()), "write key=a,b,c") from error


def job(number: int, overrides: list[str]) -> list[str]:
    """The overrides of one job; raises UserError if there are not as many."""
    found = jobs(overrides)
    if not 0 <= number < len(found):
        last = len(found) - 1
        raise UserError(f"array task {number}", f"the sweep has jobs 0 to {last}", f"use --array=0-{last}")
    return found[number]


def main() -> int:
    """The entry point; returns the exit code."""
    try:
        print("\n".join(job(int(sys.argv[1]), sys.argv[2:])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
