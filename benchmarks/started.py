"""A server for measurements: `everframe serve` in a process of its own, here or in a network namespace."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.launched import ROOT

START_S, END_S = 240.0, 40.0


class Server(NamedTuple):
    """Where it is: its address, with the token in it, and the port."""

    address: str
    port: int


def free() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextmanager
def serving(folder: Path, *overrides: str, namespace: str | None = None) -> Iterator[Server]:
    """A server, until the context is left.

    Args:
        folder: for its output and log.
        overrides: of its configuration.
        namespace: of the network that it runs in; None: this one.

    Raises:
        SystemExit: it did not start; its log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launch.serve", *overrides, f"output_dir={folder / 'out'}"]
    if namespace is not None:
        command = ["ip", "netns", "exec", namespace, *command]
    log = folder / "serve.log"
    with log.open("w") as errors:
        given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            yield _listening(process.stdout, log)
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listening(said: IO[str], log: Path) -> Server:
    """What it says once people can come."""
    found: list[Server] = []
    ready = threading.Event()

    def read() -> None:
        for line in said:
            if address := re.match(r"open (\w+://\S+?:(\d+)\S*)", line):
                found.append(Server(address[1], int(address[2])))
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    until = time.monotonic() + START_S
    if not ready.wait(until - time.monotonic()) or not found:
        raise SystemExit(f"the server did not start:\n{log.read_text()[-4000:]}")
    return found[0]
