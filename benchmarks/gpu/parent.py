"""The process that watches: it starts the one that works, again where it has died, and ends it in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.log import BEGUN, ERROR, LATE, Log

POLL_S = 0.1
TELL_S = 0.5
"""For a child to write down where it is."""
ROOM_S = 3.0
"""Of the time that is given: for the table, and for a row that takes a little longer than it was thought to."""


class Parent:
    """Watches over a run.

    Args:
        command: of the child.
        log: which the child writes.
        messages: a file for what it says on standard error.
        until: when it is ended, a moment of `time.time`.
        environ: the child's.
    """

    def __init__(
        self, command: list[str], log: Log, messages: Path, until: float, environ: Mapping[str, str] = os.environ
    ):
        self.command, self.log, self.messages, self.until, self.environ = command, log, messages, until, environ

    def run(self) -> None:
        """Until every row has its line, the time is over, or children die before they have come to a row."""
        while time.time() < self.until:
            before = len(self.log.lines())
            code = self._child()
            self._close(code)
            if code == 0 or len(self.log.lines()) == before:
                return

    def _child(self) -> int:
        """Start a child and wait for its end, its row's, or that of the time; returns its exit code."""
        with self.messages.open("ab") as said:
            child = subprocess.Popen(self.command, stderr=said, stdin=subprocess.DEVNULL, env=self.environ)
            try:
                while child.poll() is None and time.time() < min(self.until, self._limit()):
                    time.sleep(POLL_S)
                if child.poll() is None and self._open():
                    child.send_signal(signal.SIGUSR1)
                    time.sleep(TELL_S)
            finally:
                child.kill()
                child.wait()
        return child.returncode

    def _open(self) -> dict | None:
        """The row that has been begun and not ended."""
        return next((row for row in self.log.rows().values() if row["state"] == BEGUN), None)

    def _limit(self) -> float:
        """When that row is given up."""
        row = self._open()
        return row["at"] + row["limit_s"] if row else float("inf")

    def _close(self, code: int) -> None:
        """Give a row its line that its process did not end."""
        if row := self._open():
            took = time.time() - row["at"]
            ended = f"its process ended with code {code}: {self.last()}"
            hung = code == -signal.SIGKILL
            how = f"ended after {took:.0f} s; {self.messages.name} says where it was" if hung else ended
            state = LATE if time.time() >= self.until else ERROR
            self.log.add(row=row["row"], state=state, seconds=round(took, 1), value=how, hung=hung)

    def last(self) -> str:
        """What children said last."""
        lines = self.messages.read_text(errors="replace").splitlines()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")


def command(half: str, device: str, folder: Path, until: float, small: bool) -> list[str]:
    """Of a child."""
    return [
        sys.executable, "-m", "benchmarks.gpu.child", half, device, str(folder), str(until), *["--small"] * small,
    ]  # fmt: skip
