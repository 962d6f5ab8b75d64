"""Processes that wait for the place of a lost one, and what is done where no other can be started."""

from __future__ import annotations

import errno
import signal
import subprocess
from dataclasses import replace

import psutil
import pytest

from conf.errors import UserError
from launch import local
from runtime.board import PeerLost
from tests.helpers import config_of, thorough
from tests.launch.losing import EXACT, ended, going, pid, recovered, strike, until
from tests.patience import PATIENT_S

BASE = ("launcher=local", *EXACT, "model=nano", "sink.video=null", "device=cpu")


def asked(tmp_path, *overrides: str):
    """A run of one endless stream: whatever is lost, and however long another takes to load, it still goes on then."""
    return config_of(*BASE, f"output_dir={tmp_path}/run", *overrides)


def exact(run, nano, *plan: str) -> None:
    """Stop the stream: it is as long as it has become, and an undisturbed one."""
    run.pipeline.stop(0)
    latents, chunks = ended(run)
    assert latents == nano(f"stream.chunks={chunks}", *plan)


@pytest.mark.parametrize(
    "plan",
    [
        ("plan=timestep", "plan.workers=2"),
        thorough(("plan=timestep", "plan.workers=2", "plan.sequence_parallel=2")),
        thorough(("plan=grid", "plan.workers=4")),
        thorough(("plan=layers", "plan.workers=3")),
    ],
    ids=lambda plan: " ".join(plan),
)
def test_a_spare_takes_a_place_and_another_waits(tmp_path, nano, plan):
    with going(asked(tmp_path, "launcher.spares=1", *plan)) as run:
        count = run.plan.processes
        [spare] = run.supervisor.spares
        assert spare == count
        last = run.generation.processes[-1]
        strike(run, last)
        record = recovered(run)
        assert run.generation.processes == (*range(count - 1), spare) and record["workers"] == count
        until(lambda: run.supervisor.spares, run)
        [unused] = run.supervisor.spares
        until(lambda: run.told(f"loaded/{unused}"), run)
        left = [run._workers[process].pid for process in (spare, unused)]
        exact(run, nano, *plan[2:])
        reports = run.wait()
        assert len(reports) >= count
    assert not any(map(psutil.pid_exists, left))


def test_a_spare_that_dies_is_replaced_while_streams_go_on(tmp_path, nano):
    with going(asked(tmp_path, "launcher.spares=1", "plan=timestep", "plan.workers=2")) as run:
        [spare] = run.supervisor.spares
        strike(run, spare)
        until(lambda: run.supervisor.spares and spare not in run.supervisor.spares, run)
        [other] = run.supervisor.spares
        assert run.supervisor.records == [] and run.generation.number == 0
        until(lambda: other in run._workers, run)
        run._workers[other].kill()  # before it has loaded, maybe: then none comes until one is needed
        exact(run, nano)


def no_process(*_, **__):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_where_no_process_can_be_started_fewer_go_on(tmp_path, nano, monkeypatch):
    with going(asked(tmp_path, "plan=timestep", "plan.workers=3")) as run:
        monkeypatch.setattr(local.subprocess, "Popen", no_process)
        first, _, last = run.generation.processes
        strike(run, 1)
        record = recovered(run)
        assert record["workers"] <= 2 and set(run.generation.processes) <= {first, last}
        assert "no process can be started (Cannot allocate memory)" in record["why"]
        exact(run, nano)


def test_where_a_process_cannot_load_fewer_go_on(tmp_path, nano):
    with going(asked(tmp_path, "plan=timestep", "plan.workers=2")) as run:
        spawn, count, missing = run._spawn, 0, tmp_path / "missing"

        def poor(process, generation, live):
            nonlocal count
            count += 1
            kept, run.config = run.config, replace(run.config, model=replace(run.config.model, checkpoint=str(missing)))
            try:
                spawn(process, generation, live)
            finally:
                run.config = kept

        run._spawn = poor
        strike(run, 1)
        record = recovered(run)
        assert record["workers"] == 1 and count == 1 and f"{missing}" in record["why"]
        exact(run, nano)


def test_a_single_process_that_cannot_be_replaced_ends_the_run_with_a_line(tmp_path, monkeypatch):
    with going(asked(tmp_path, "plan=sequential")) as run:
        monkeypatch.setattr(local.subprocess, "Popen", no_process)
        strike(run, 0)
        with pytest.raises(PeerLost, match="no plan fits on the 0 processes that are left"):
            run.wait(PATIENT_S)


def test_a_spare_without_room_is_refused_at_the_start(tmp_path, monkeypatch):
    started = subprocess.Popen

    def two(*given, **named):
        if len(local_workers) == 2:
            no_process()
        local_workers.append(started(*given, **named))
        return local_workers[-1]

    local_workers: list[subprocess.Popen] = []
    monkeypatch.setattr(local.subprocess, "Popen", two)
    with (
        pytest.raises(UserError, match=r"launcher.spares=1: no process can be started \(Cannot allocate memory\)"),
        going(asked(tmp_path, "launcher.spares=1", "plan=timestep", "plan.workers=2")),
    ):
        raise AssertionError("it began")
    for worker in local_workers:
        assert worker.wait(PATIENT_S)


@pytest.mark.long
def test_two_at_once_and_a_stopped_one(tmp_path, nano):
    config = asked(tmp_path, "plan=timestep", "plan.workers=3", "launcher.silent_s=5")
    with going(config) as run:
        strike(run, 0, 2)
        recovered(run)
        stopped = run.generation.processes[1]
        number = pid(run, stopped)
        strike(run, stopped, how=signal.SIGSTOP)
        assert "silent" in recovered(run, 1)["why"]
        assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE
        exact(run, nano)
