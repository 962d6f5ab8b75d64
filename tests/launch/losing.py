"""Runs whose workers are lost on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conf.schema import Config
from launch.running import start
from runtime.pipeline import run_all
from runtime.pulse import key
from runtime.running import Running
from tests.patience import PATIENT_S

EXACT = ("launcher.recover=exact", f"launcher.timeout_s={PATIENT_S}")
"""Who is killed or stopped is lost, and no process that a busy machine only keeps from saying its first word."""


def until(test: Callable[[], object], run: Running, limit_s: float = PATIENT_S) -> None:
    """Wait until `test` holds, or the run is over, which is a failure."""
    end = time.monotonic() + limit_s
    while not test():
        assert not run.over, run._error
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def going(config: Config, chunks: int = 20) -> Iterator[Running]:
    """A run of which so many chunks have been put out."""
    with start(config, first=lambda pipeline: run_all(pipeline, config)) as run:
        until(lambda: run.begun and made(run) >= chunks, run)
        yield run


def made(run: Running, stream: int = 0) -> int:
    """Chunks that were put out so far."""
    return (run.pipeline.progress(stream) or {}).get("chunks", 0)


def pid(run: Running, process: int) -> int:
    """The number that the system has for a process of a run."""
    return int(run.told(key(process))["process"].split("/")[1])


def strike(run: Running, *processes: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes of a run."""
    for number in [pid(run, process) for process in processes]:
        os.kill(number, how)


def recovered(run: Running, before: int = 0) -> dict:
    """The record of the generation after `before` others, once its streams have gone on."""
    records = run.supervisor.records
    until(lambda: len(records) > before and "frozen_s" in records[-1], run)
    return records[-1]


def ended(run: Running, stream: int = 0) -> tuple[str, int]:
    """(hash, chunks) of a stream when all is over. An endless one has to be stopped before."""
    run.wait(PATIENT_S)
    result = run.pipeline.result(stream)
    return result["latents_sha256"], result["chunks"]
