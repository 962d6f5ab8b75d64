"""What may be wrong with how torchrun was, or was not, used: one line and exit code 2, in time."""

import socket

import pytest
import torch

from conf.errors import UserError
from launch import stream, torchrun
from tests.helpers import config_of, thorough

TOLD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}
TORCHRUN = ("model=nano", "plan=timestep", "launcher=torchrun", "stream.chunks=1")


@pytest.fixture
def told(monkeypatch):
    """told(NAME=value, ...): what torchrun tells a process; None: it does not."""

    def tell(**values):
        for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", *TOLD):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return tell


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"RANK": None}, "launcher=torchrun: this process was not started by torchrun; start it with torchrun --nproc"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: is not set, as torchrun does; start it with torchrun"),
        ({"MASTER_PORT": None}, "MASTER_PORT: is not set, as torchrun does; start it with torchrun"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: must be a number from 1 to 65535"),
        ({"RANK": "first"}, "RANK=first: must be a number from 0 to 1"),
        ({"RANK": "2"}, "RANK=2: must be a number from 0 to 1"),
        ({"RANK": "-1"}, "RANK=-1: must be a number from 0 to 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a number from 1 to"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a number from 1 to"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_torchrun_tells(job, told, values, line):
    told(**TOLD | values)
    assert job.fails(*TORCHRUN).startswith(line)


@pytest.mark.parametrize("host", ["127.0.0.1", thorough("no-such-host.invalid")])
def test_an_address_that_nobody_answers_at(job, told, host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told(**TOLD | {"MASTER_ADDR": host, "MASTER_PORT": str(port)})
    line = job.fails(*TORCHRUN, "launcher.timeout_s=0.5")
    assert line.startswith(f"MASTER_ADDR={host} MASTER_PORT={port}: nobody answers there within 0.5 s ")


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_a_launcher_that_knows_nothing_of_torchrun_is_refused(job, told, capsys, launcher):
    """On every rank: one says why."""
    told(**TOLD | {"RANK": "0", "TORCHELASTIC_RUN_ID": "none"})
    assert job.fails("model=nano", f"launcher={launcher}") == (
        f"launcher={launcher}: torchrun started 2 processes, and each would be a run of its own; "
        "set launcher=torchrun, or start it once, without torchrun"
    )
    told(**TOLD | {"TORCHELASTIC_RUN_ID": "none"})
    assert stream.main(["model=nano", f"launcher={launcher}", f"output_dir={job.folder}"]) == 2
    assert capsys.readouterr().err == "" and not job.folder.exists()


@pytest.mark.parametrize("rank", "01")
def test_a_multirun_is_refused_before_ranks_meet(told, tmp_path, capsys, rank):
    told(**TOLD | {"RANK": rank})
    assert stream.main([*TORCHRUN, "stream.seed=1,2", "--multirun", f"output_dir={tmp_path}/run"]) == 2
    line = "error: launcher=torchrun: has the ranks of one run, and a multirun has several runs; start a torchrun for "
    assert capsys.readouterr().err.startswith(line) == (rank == "0") and not list(tmp_path.iterdir())


def test_a_run_of_one_process_is_any_run(nano, told):
    told(RANK="0", WORLD_SIZE="1", TORCHELASTIC_RUN_ID="none")
    assert nano("stream.chunks=1")


def test_a_plan_of_another_size_is_told_from_what_torchrun_started(job, told, monkeypatch, capsys):
    monkeypatch.setattr(torchrun, "agree", lambda config, stop=None: None)
    monkeypatch.setattr(torchrun, "rendezvous", lambda timeout_s: (None, 0, 2))
    told(**TOLD | {"RANK": "0"})
    assert job.fails(*TORCHRUN, "plan.workers=3") == (
        "plan.workers=3: torchrun started 2 processes; use plan.workers=2, or --nproc-per-node=3"
    )
    line = job.fails("model=nano", "launcher=torchrun", "plan=sequential")
    assert line == (
        "plan.workers=2: plan=sequential is one worker; "
        "use plan=timestep, or plan.workers=1 (torchrun --nproc-per-node=1)"
    )
    told(**TOLD)
    assert stream.main(["model=nano", "launcher=torchrun", "plan=sequential", f"output_dir={job.folder}"]) == 2
    assert capsys.readouterr().err == ""  # the first rank has said it


def test_a_rank_of_several_gpus_must_know_which_is_its_own(told, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told(**TOLD | {"LOCAL_RANK": None})
    assert torchrun.device(config_of("model=nano")) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="LOCAL_RANK: is not set, as torchrun does"):
        torchrun.device(config_of("model=nano"))
    told(**TOLD)
    assert torchrun.device(config_of("model=nano")) == torch.device("cuda", 1) == taken[-1]
