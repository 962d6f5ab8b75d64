"""Join the parts of a video that runs left beside it: `python -m launch.join outputs/run/video.mp4`.

A run that goes on from a state does this by itself at its end; this is for those that were killed before.
"""

from __future__ import annotations

import sys
from pathlib import Path

from conf.errors import UserError
from launch.cli import EXIT_USER_ERROR
from stages.sinks.join import join


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UserError("everframe join", "needs a video", "everframe join outputs/run/video.mp4")
        for video in arguments:
            print(f"{video}: {join(Path(video))} parts joined to it")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
