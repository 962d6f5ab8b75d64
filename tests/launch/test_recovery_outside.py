"""Losses while a run loads, and while nobody takes what it puts out."""

from __future__ import annotations

import os
import signal
import threading

from launch.running import start
from runtime.pipeline import run_all
from runtime.pulse import key
from stages.sinks.reader import Reader
from tests.helpers import config_of
from tests.launch.losing import EXACT, ended, pid, recovered, strike, until
from tests.patience import PATIENT_S

BASE = ("launcher=local", *EXACT, "model=nano", "plan=timestep", "sink.video=null", "device=cpu")


def test_workers_that_are_lost_while_they_load_are_started_again(tmp_path, nano):
    oracle = nano("stream.chunks=20")
    config = config_of(*BASE, "plan.workers=2", "stream.chunks=20", "launcher.silent_s=5", f"output_dir={tmp_path}/run")
    with start(config, first=lambda pipeline: run_all(pipeline, config)) as run:
        run._workers[1].kill()  # before it has said a word: streams cannot begin without it
        until(lambda: run.told(key(0)), run)
        os.kill(pid(run, 0), signal.SIGSTOP)
        assert ended(run) == (oracle, 20)
        assert run.supervisor._again_once == {0, 1} and run.supervisor.records == []


def test_a_reader_who_has_paused_costs_nobody_its_place(tmp_path, nano):
    """A program that does not read holds up the output, which is waited for by nobody when another worker is lost."""
    chunks, reader, taken = 60, Reader("127.0.0.1"), []
    oracle = nano(f"stream.chunks={chunks}")
    config = config_of(
        *BASE, "plan.workers=3", f"stream.chunks={chunks}", f"sink.reader={reader.address}", "launcher.silent_s=5",
        f"output_dir={tmp_path}/run",
    )  # fmt: skip

    def read() -> None:
        while (chunk := reader.next(lambda: run.over)) is not None:
            taken.append(chunk.index)

    with start(config, first=lambda pipeline: run_all(pipeline, config)) as run:
        taken += [reader.next(lambda: run.over).index for _ in range(10)]
        last = run.generation.processes[-1]
        until(lambda: (p := run.told(key(last)))["at"].startswith("output") and p["busy"] and p["at_s"] > 1, run)
        strike(run, 0)
        until(lambda: run.generation.number == 1 and run.told(f"ready/1/{last}"), run)
        assert run.generation.processes[1:] == (1, last), "only who was lost is replaced"
        assert len(taken) == 10
        reading = threading.Thread(target=read)
        reading.start()
        assert "SIGKILL" in recovered(run)["why"]
        assert ended(run) == (oracle, chunks)
        reading.join(PATIENT_S)
    assert taken == list(range(chunks))
    reader.close()
