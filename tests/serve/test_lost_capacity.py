"""A gateway whose pipeline loses a worker that nothing replaces: what is too much for the rest ends, the newest first;
and a gateway that is told to end, or killed, meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from runtime import cuts
from serve import client
from tests.launch.started import alive
from tests.patience import PATIENT_S

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SERVE = """
import subprocess, sys
from pathlib import Path
from launch import local, serve
started, closed = subprocess.Popen, Path(sys.argv.pop(1))

def popen(*given, **named):
    if closed.exists():
        raise OSError(12, "Cannot allocate memory")
    return started(*given, **named)

local.subprocess.Popen = popen
sys.exit(serve.main(sys.argv[1:]))
"""
"""A gateway on whose machine no process can be started any more, as soon as a file is there."""
PIPELINE = (
    "model=nano", "device=emulated", "plan=timestep", "plan.workers=2", "device.emulated.step_s=0.12",
    "launcher.silent_s=5", "serve.headroom=0.1", "serve.max_sessions=2",
)  # fmt: skip


@contextmanager
def gateway(folder: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """(its process, its address, what it says) of a gateway that takes sessions."""
    arguments = [
        *PIPELINE, "serve.port=0", "serve.host=127.0.0.1", "serve.token=null", f"output_dir={folder}/run", *overrides,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder / "closed"), *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.strip())
            if line.startswith("open "):
                break
        else:
            raise AssertionError(said)
        threading.Thread(target=lambda: said.extend(map(str.strip, process.stdout)), daemon=True).start()
        yield process, line.split()[1].partition("/#")[0], said
    finally:
        with suppress(psutil.NoSuchProcess):
            for left in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                left.kill()
        process.wait()


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Processes of a gateway that are workers, in the order in which they were started."""
    found = [one for one in psutil.Process(process.pid).children() if "launch.worker" in one.cmdline()]
    return sorted(found, key=lambda one: one.pid)


def read(session) -> threading.Thread:
    """Take what comes."""

    def work() -> None:
        with suppress(Exception):
            for _ in session:
                pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(test, what) -> None:
    end = time.monotonic() + PATIENT_S
    while not test():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def kinds(session) -> list[str]:
    return [notice.get("kind") for notice in session.notices]


def test_the_newest_session_ends_where_fewer_workers_are_left(tmp_path):
    with gateway(tmp_path) as (process, address, said):
        first, second = client.connect(address), client.connect(address)
        for session in (first, second):
            read(session)
        until(lambda: first.figures and second.figures, said)
        (tmp_path / "closed").touch()
        workers(process)[1].kill()
        until(lambda: second.done, said)
        assert second.done["reason"] == "capacity", said
        # An emulated device makes no pictures, with which it would be told that they go on.
        assert not first.done and "frozen" in kinds(first)
        first.close()


def test_a_gateway_that_is_told_to_end_while_frozen_ends_at_its_limit(tmp_path):
    with gateway(tmp_path, "serve.drain_s=3") as (process, address, said):
        session = client.connect(address)
        read(session)
        until(lambda: session.figures, said)
        family = psutil.Process(process.pid).children(recursive=True)
        for worker in workers(process):
            worker.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT_S) is not None
        until(lambda: not any(map(alive, family)), said)
        until(lambda: session.done, said)


def test_a_gateway_that_is_killed_takes_its_workers_along(tmp_path):
    memory = tmp_path / "memory"
    memory.mkdir()
    with gateway(tmp_path, f"launcher.cuts={memory}") as (process, address, said):
        session = client.connect(address)
        read(session)
        until(lambda: session.figures, said)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.kill()
        until(lambda: not any(map(alive, family)), said)
        # As the next run does.
        until(lambda: cuts.sweep(memory) or not list(memory.iterdir()), said)
