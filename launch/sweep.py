"""One job of a multirun, for batch systems that number their jobs: `python -m launch.sweep 2 stream.seed=1,2,3 ...`.

Prints job 2's arguments, one a line: those that `python -m launch.stream -m stream.seed=1,2,3 ...` would give it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from conf.errors import UserError
from conf.schema import Config
from launch.arguments import MULTIRUN, read
from launch.cli import EXIT_USER_ERROR


def jobs(given: Sequence[str]) -> list[list[str]]:
    """The arguments of every job of a multirun, in Hydra's order, as a person would type them.

    Raises:
        UserError: one of them cannot be read.
    """
    return [list(job) for job in product(*map(_each, given))]


def _each(argument: str) -> list[str]:
    """What one argument is in the jobs: itself, or what it sweeps over."""
    for override in read([MULTIRUN[0], argument], Config).overrides[1:]:
        with suppress(HydraException):  # an option, which every job is given
            parsed = OverridesParser.create().parse_override(override)
            return list(_swept(parsed)) if parsed.is_sweep_override() else [argument]
    return [argument]


def _swept(override: Override) -> Iterator[str]:
    """One argument for every value of a sweep."""
    values = zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True)
    for value, written in values:
        yield f"{override.get_key_element()}={value.text if isinstance(value, QuotedString) else written}"


def job(number: int, overrides: Sequence[str]) -> list[str]:
    """The arguments of one job; raises UserError if there are not as many."""
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
