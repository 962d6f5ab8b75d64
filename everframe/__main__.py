"""`everframe COMMAND ...`, once it is known that `launch` is Everframe's own."""

from __future__ import annotations

import sys

from everframe.names import insist


def main() -> int:
    """The console script; returns the exit code."""
    insist()
    from launch.__main__ import main as command  # not before its name is known to be ours

    return command()


if __name__ == "__main__":
    sys.exit(main())
