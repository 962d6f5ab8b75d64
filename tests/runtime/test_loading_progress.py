"""What is said while weights load."""

import io
import threading

import pytest
import torch
from rich.console import Console

from conf.errors import UserError
from launch import progress
from parallel.builders import build
from runtime import process
from runtime.local import LocalRun
from runtime.progress import Loading
from runtime.room import require_weights
from runtime.workload import describe
from stages.build import build_network
from tests.helpers import config_of
from tests.patience import PATIENT_S


def test_bytes_and_rate_are_told():
    now, told = [0.0], []
    loading = Loading(lambda at: told.append(str(at)), clock=lambda: now[0])
    loading("sources and encoders")
    loading("layers 0-39", 28_000_000_000)
    loading.count(7_000_000_000)
    now[0] = 14.0
    assert str(loading) == "loading layers 0-39: 7.0 of 28.0 GB at 0.50 GB/s"
    assert told == ["loading sources and encoders", "loading layers 0-39: 0.0 of 28.0 GB at 0.00 GB/s"]


@pytest.mark.parametrize("plan", ["plan=sequential", "plan=layers"])
def test_what_is_counted_is_what_the_plan_says(plan):
    config = config_of("model=nano", plan)
    made = build(config.plan, describe(config))
    for block, layers in enumerate(made.blocks):
        counted = []
        build_network(config.model, torch.device("cpu"), layers, count=counted.append)
        assert sum(counted) == made.block_bytes(block)


def test_weights_that_memory_has_no_room_for_are_refused(monkeypatch):
    config = config_of("model=nano")
    monkeypatch.setattr("runtime.room.free_bytes", lambda device: ("here", 10_000_000_000))
    require_weights(config, 10_000_000_000, torch.device("cpu"))
    with pytest.raises(UserError) as error:
        require_weights(config, 28_000_000_000, torch.device("cpu"))
    assert "model=nano: has 28.0 GB of weights here, and cpu has 10.0 GB free" in str(error.value)


def test_who_waits_is_told_again_and_again(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.001)
    said, thrice = io.StringIO(), threading.Event()
    count = iter(range(1, 10**6))

    def tell():
        number = next(count)
        if number > 3:
            thrice.set()
        return f"part {number}"

    with progress.Waiting(Console(file=said), tell):
        assert thrice.wait(PATIENT_S)
    assert [line.split("  ")[0] for line in said.getvalue().splitlines()[:3]] == ["part 1", "part 2", "part 3"]


@pytest.mark.parametrize("plan", ["plan=timestep", "plan=layers"])
def test_workers_that_share_a_memory_are_counted_together(tmp_path, monkeypatch, plan):
    """Each of them alone finds room. Under `timestep` each holds all layers, under `layers` its own."""
    config = config_of("model=nano", plan, "plan.workers=4", "sink.video=null", f"output_dir={tmp_path}")
    made = build(config.plan, describe(config))
    needed, room, looked = sum(made.weight_bytes(worker) for worker in range(4)), 13_000_000, []

    def free(device):
        looked.append(0)
        return "host", room if len(looked) == 1 else room // 2  # others load while the last ones look

    monkeypatch.setattr(process, "free_bytes", free)
    engine = LocalRun(made, config, tmp_path)
    assert (needed > room) == (plan == "plan=timestep")
    if needed > room:
        with pytest.raises(UserError, match=r"model=nano: \d processes hold .* GB of it in a memory that had"):
            engine.start().wait(PATIENT_S)
    else:
        engine.start().close()
        engine.wait(PATIENT_S)
