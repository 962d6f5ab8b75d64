"""`everframe COMMAND ...` is `python -m launch.COMMAND ...`."""

from __future__ import annotations

import errno
import importlib
import signal
import sys

from conf.errors import UserError, nearest
from launch.command import HELP, VERSION, examples, version
from launch.console import lasting

COMMANDS = {
    "stream": "stream video by a plan: a portrait that speaks, a world that is walked through",
    "serve": "people and programs talk to it live: in a browser, over WebRTC and WebSockets",
    "plan": "what a plan would do, or which is best for a cluster",
    "inspect": "what a checkpoint is, and what it would take to run it",
    "doctor": "is everything ready: devices, links, disk, encoder",
    "bench": "measure stages and links for the planner",
    "join": "join the parts of a video that a killed run left",
    "evaluate": "judge a model that was trained here",
    "distill": "train a model, stage by stage",
    "scripts": "copy the batch scripts for SLURM out of an installation",
    "new-family": "begin a model family of one's own",
}


def page() -> str:
    """What `everframe --help` prints."""
    commands = [f"  {name:12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: everframe COMMAND [KEY=VALUE ...] [--help] [--version]",
            "",
            "Endless video from large diffusion transformers, streamed in real time across the GPUs that there are.",
            "",
            "commands (everframe COMMAND --help tells of each):",
            *commands,
            "",
            "examples:",
            *(f"  {line}" for line in examples("everframe")),
        ]
    )


def main() -> int:
    """Hand the arguments to the command's module; returns the exit code."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in COMMANDS:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take seconds: Ctrl-C ends them without a traceback
        return importlib.import_module(f"launch.{name.replace('-', '_')}").main(arguments)
    if name in HELP or name in VERSION:
        with lasting(errno.EPIPE):
            print(page() if name in HELP else f"everframe {version()}")
        return 0
    error = UserError(f"everframe {name}".strip(), "needs a command", nearest(name, COMMANDS))
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
