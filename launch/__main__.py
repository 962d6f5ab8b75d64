"""`everframe COMMAND ...` is `python -m launch.COMMAND ...`."""

from __future__ import annotations

import importlib
import signal
import sys

from conf.errors import UserError, nearest

COMMANDS = ("stream", "plan", "inspect", "doctor", "join", "new-family")


def main() -> int:
    """Hand the arguments to the command's module; returns the exit code."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in COMMANDS:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take seconds: Ctrl-C ends them without a traceback
        return importlib.import_module(f"launch.{name.replace('-', '_')}").main(arguments)
    error = UserError(f"everframe {name}".strip(), "needs a command", nearest(name, COMMANDS))
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
