"""Join the parts of a video that runs left beside it.

A run that goes on from a state does this by itself at its end; this is for those that were killed before.
"""

from __future__ import annotations

import sys
from pathlib import Path

from conf.errors import UserError
from launch.cli import alone
from launch.command import Command
from stages.sinks.join import join

COMMAND = Command("join", __doc__, usage="VIDEO ...")


def job(videos: list[str]) -> None:
    """Join what there is for each video, and say how many parts that was."""
    if not videos or videos[0].startswith("-"):
        raise UserError("everframe join", "needs a video", "everframe join outputs/run/video.mp4")
    for video in videos:
        print(f"{video}: {join(Path(video))} parts joined to it")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return alone(COMMAND, job, argv)


if __name__ == "__main__":
    sys.exit(main())
