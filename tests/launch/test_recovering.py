"""What exact recovery takes, as the plan command says it, and what has no room for it."""

import pytest
import torch

from conf.errors import UserError
from conf.schema.serve import ServedConfig
from launch import plan, recovering, serve
from launch.cli import compose
from parallel.builders import build
from parallel.cuts import Cuts
from runtime.loading import load_parts
from runtime.workload import describe, logged
from stages.denoise.bank import Bank
from stages.denoise.layout import Layout, runs_of
from tests.helpers import config_of

H800 = ("model=live_avatar_14b", "plan=timestep", "cluster=h800x5", "launcher.recover=exact")


@pytest.mark.parametrize("shape", ["timestep", "layers", "grid"])
@pytest.mark.parametrize("context", ["same_level", "clean"])
def test_cuts_keep_what_real_banks_hold(shape, context):
    """Keys and values of all; of the attention sink, keys as they were before they were turned."""
    config = config_of("model=nano", f"plan={shape}", f"model.context={context}", "device=cpu")
    made, kept = build(config.plan, describe(config)), logged(config)
    for worker in range(made.workers):
        parts = load_parts(made, worker, config)
        cuts, held = Cuts(made, kept, 1), 0
        for pool in parts.pools.values():
            # Of copies of one bank the first step's worker brings its own.
            for bank in pool.take().banks.values() if context != "clean" or 0 in _steps(made, worker) else ():
                held += sum(t.nbytes for part in (bank.keys, bank.values) for t in part.values())
        once = parts.decoder_bytes if worker == made.decode else 0
        assert cuts.rest(worker) == held + once


def _steps(plan, worker: int) -> set[int]:
    return {step for block in plan.blocks_of(worker) for step in plan.steps_of(worker, block)}


@pytest.mark.parametrize("model", ["nano", "live_avatar_14b"])
def test_a_chunk_dirties_the_slots_that_it_writes(model):
    config = config_of(f"model={model}", "plan=timestep", "device=cpu")
    kept, model = logged(config), config.model
    tokens = {"nano": 4, "live_avatar_14b": 44 * 24}[model.name]
    layout = Layout.of(model, tokens)
    bank = Bank(
        layout, [0], model.network.heads, model.network.head_dim, getattr(torch, model.dtype), torch.device("meta")
    )
    per_token = bank.keys[0][:, :1].nbytes + bank.values[0][:, :1].nbytes
    written = sum(count for _, _, count in runs_of(range(30, 30 + model.chunk_frames), layout.slot)) * tokens
    assert kept.written[0] * kept.shared[0] == kept.most[0] * kept.shared[0] == written * per_token
    assert kept.shared_rest[0] == bank.keys[0].nbytes + bank.values[0].nbytes


def test_a_14b_avatar_by_hand():
    config = config_of("model=live_avatar_14b", "plan=timestep")
    made, kept = build(config.plan, describe(config)), logged(config)
    # 3 frames of 44 x 24 tokens, 40 layers, keys and values of 5120 channels in two bytes.
    chunk = 3 * 1056 * 40 * 2 * 5120 * 2
    assert [Cuts(made, kept, 1).dirty(worker) for worker in range(4)] == [chunk] * 4
    assert Cuts(made, kept, 3).dirty(1) == 3 * chunk and Cuts(made, kept, 9).dirty(1) == 4 * chunk


def test_nano_by_hand():
    config = config_of("model=nano", "plan=sequential")
    made, kept = build(config.plan, describe(config)), logged(config)
    # 3 frames of 4 tokens, 6 layers, 4 levels, keys and values of 48 channels in four bytes.
    assert Cuts(made, kept, 1).dirty(0) - kept.decoder == 3 * 4 * 6 * 4 * 2 * 48 * 4


def told(capsys, *overrides: str) -> str:
    assert plan.main(list(overrides)) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_what_recovery_takes_and_what_happens_where_it_is_not_there(capsys):
    text = told(capsys, *H800)
    assert "Recovery, launcher.recover=exact: a cut every 3 chunks, 800 ms of work." in text
    # 2.6 GB of a chunk in 4 / 15 s, and what the decoder remembers once in three.
    assert "To the host: 9.73 GB/s from each of workers 0-3, 7.79 GB a cut. Limit: 26.4 GB/s, 50 % of the" in text
    assert "To the host: 1.60 GB/s from worker 4, 1.28 GB a cut" in text
    assert "Memory of the machine: 116 GB, of 1.00 TB in /dev/shm." in text
    assert "A loss costs 2.1 s of replay at most, and the loading of a new process (none with a spare)." in text
    assert "A dead process is seen at once, a silent one after 5 s." in text
    assert "A device that is slower to its host makes cuts less often. Where memory lacks, the run is refused" in text
    slower = told(capsys, *H800, "cluster.kinds.h800.host_bandwidth=8e9")
    assert "a cut every 10 chunks, 2.67 s of work. launcher.recover_s=1 asks for one every 3, which devices" in slower
    assert "3.89 GB/s from each of workers 0-3, 10.4 GB a cut. Limit: 4.00 GB/s" in slower
    longer = told(capsys, *H800, "launcher.recover_s=10")
    assert "a cut every 37 chunks" in longer and "1.05 GB/s from each of workers 0-3, 10.4 GB a cut" in longer


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("cluster.host_bytes=200e9",), "set launcher.recover_s=0.27, or launcher.recover=off"),
        (("cluster.host_bytes=100e9",), "set launcher.recover=off"),
        (
            ("cluster.host_bytes=300e9", "model.window_frames=3", "stream.count=4"),
            "set stream.count=3, or launcher.recover=off",
        ),
    ],
    ids=str,
)
def test_a_machine_without_the_memory_is_refused_with_the_remedy(capsys, overrides, remedy):
    assert plan.main([*H800, *overrides]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("error: launcher.recover=exact launcher.cuts=/dev/shm: cuts of ")
    assert remedy in line


def test_without_recovery_and_under_torchrun_nothing_is_said_of_it(capsys):
    assert "Recovery" not in told(capsys, *H800, "launcher.recover=off")
    assert "Recovery" not in told(capsys, *H800, "launcher=torchrun")
    assert "Recovery, launcher.recover=exact" in told(capsys, "model=nano", "plan=timestep", "launcher.recover=exact")


def test_spares_are_told_of(capsys):
    text = told(capsys, *H800, "launcher.spares=1")
    assert "and no loading: a spare has loaded." in text
    assert "1 spare holds 45.7 GB, the weights of all workers: 1 on a device that a worker has." in text
    text = told(capsys, *H800, "launcher.spares=2", "plan.workers=4")
    assert "2 spares hold 45.7 GB each" in text
    assert "1 on a device of its own, 1 on a device that a worker has." in text
    text = told(capsys, *H800, "launcher.spares=1", "launcher.recover=off")
    assert "launcher.spares=1 has no effect: launcher.recover is not exact" in text


def test_a_run_is_held_against_this_machine(monkeypatch, tmp_path):
    config = config_of("model=nano", "plan=timestep", "launcher.recover=exact", f"launcher.cuts={tmp_path}")
    made = build(config.plan, describe(config))
    recovering.check(config, made)
    monkeypatch.setattr(recovering, "free_here", lambda folder: 1e5)
    with pytest.raises(UserError, match=r"cuts of 1 stream take .* of memory, and this machine has 100 kB for them"):
        recovering.check(config, made)
    recovering.check(config_of("model=nano", "plan=timestep"), made)
    recovering.check(config_of("model=nano", "plan=timestep", "launcher=torchrun", "launcher.recover=exact"), made)


def test_cuts_have_a_folder(tmp_path):
    nowhere = f"{tmp_path}/nowhere"
    with pytest.raises(UserError, match=rf"launcher.cuts={nowhere}: is no folder .* give one in memory"):
        recovering.free_here(nowhere)
    assert recovering.free_here("/dev/shm") > 0


def test_a_server_goes_on_unless_its_workers_would_die_with_it():
    def recovers(*overrides: str) -> bool:
        return serve.processes(compose("serve", ServedConfig, ["model=nano", *overrides])).launcher.recovers

    assert recovers() and recovers("launcher=ray") and recovers("launcher.recover=exact")
    assert not recovers("launcher.recover=off") and not recovers("launcher.threads=true")
    assert not config_of("model=nano").launcher.recovers
