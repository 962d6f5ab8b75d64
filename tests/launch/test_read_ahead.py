"""What the encoding worker has read ahead of a pipe is not lost with it."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager

import pytest

from launch.running import start
from runtime.pipeline import run_all
from tests.helpers import config_of
from tests.launch.losing import EXACT, ended, made, recovered, strike, until
from tests.patience import PATIENT_S

FRAMES, EACH = 1200, 8
"""More lines than a chunk's line in the journal has of what is to come, and than a reader holds."""
LINES = "".join(
    json.dumps({"frame": frame, "action": ("forward", "left", "right")[(frame // 40 + one) % 3]}) + "\n"
    for frame in range(FRAMES)
    for one in range(EACH)
).encode()
MODEL = ("model=nano", "device=cpu", "sink.video=null", "source.pace=free", "stream.prompt=hello", "sink.trace=none")
LOSSY = (*EXACT, "plan=timestep", "plan.workers=2")


@contextmanager
def poured(data: bytes):
    """Standard input that holds all of it at once, then its end."""
    reading, writing = os.pipe()

    def pour() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    with os.fdopen(reading, "rb", buffering=0) as stdin:
        thread = threading.Thread(target=pour)
        thread.start()
        yield stdin
        thread.join(PATIENT_S)


def run_of(folder, stdin, *overrides: str, lose: bool = False) -> tuple[str, int]:
    """(hash, chunks) of a stream, of whose workers the one that encodes is killed, if one is."""
    config = config_of(*MODEL, f"output_dir={folder}", *overrides)
    with start(config, stdin=stdin, first=lambda pipeline: run_all(pipeline, config)) as run:
        if lose:
            until(lambda: run.begun and made(run) >= 20, run)
            strike(run, run.generation.processes[run.plan.encode])
            assert recovered(run)["workers"] == 2
        return ended(run)


@contextmanager
def poured_into(path):
    """A named pipe, likewise: whoever writes is done before anybody is lost, or waits."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(LINES,))
    thread.start()
    yield
    thread.join(PATIENT_S)
    assert not thread.is_alive()


def killed(tmp_path, *launcher: str) -> None:
    with poured(LINES) as stdin:
        whole = run_of(tmp_path / "whole", stdin, "source.actions=-", "launcher.threads=true")
    assert whole[1] > FRAMES // 16
    with poured(LINES) as stdin:
        assert run_of(tmp_path / "killed", stdin, "source.actions=-", *LOSSY, *launcher, lose=True) == whole


def test_lines_that_were_read_ahead_by_a_killed_process_are_acted_on(tmp_path):
    (tmp_path / "cuts").mkdir()
    killed(tmp_path, "launcher=local", f"launcher.cuts={tmp_path}/cuts")


def test_and_so_are_those_in_a_named_pipe(tmp_path, job):
    (tmp_path / "lines").write_bytes(LINES)
    whole = job(*MODEL, f"source.actions={tmp_path}/lines")
    with poured_into(tmp_path / "pipe"):
        found = run_of(tmp_path / "killed", None, f"source.actions={tmp_path}/pipe", *LOSSY, lose=True)
    assert found == (whole["latents_sha256"], whole["chunks"])


@pytest.mark.long
def test_and_on_ray(tmp_path):
    pytest.importorskip("ray")
    killed(tmp_path, "launcher=ray")
