"""A torchrun that lost a rank and started anew: streams go on from their newest states by themselves."""

import time
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from benchmarks.kill import is_worker
from launch import restarting, torchrun
from runtime.state import CONTENT
from tests.helpers import config_of, thorough
from tests.launch.ruled import RULES, alone, ruled
from tests.launch.started import report_of, start
from tests.launch.test_stream import decoded
from tests.patience import PATIENT_S

RECOVER = ("model=nano", "launcher=torchrun", "launcher.recover=exact")


def begun(folder: Path, process, pattern: str) -> None:
    """Wait until a run has saved a state."""
    deadline = time.monotonic() + PATIENT_S
    while not list(folder.glob(f"{pattern}/{CONTENT}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks(process) -> list[psutil.Process]:
    """The ranks of a torchrun, in order."""
    found = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p, "torchrun")]
    return sorted(found, key=lambda p: int(p.environ()["RANK"]))


def restarting_run(folder: Path, chunks: int, *overrides: str):
    base = ("model=nano", "plan=timestep", "launcher.recover=exact", f"stream.chunks={chunks}", f"output_dir={folder}")
    return start("torchrun", 2, *base, *overrides)


@pytest.mark.parametrize("lost", [1, thorough(0)])
def test_a_lost_rank_costs_what_was_not_saved_and_nothing_else(tmp_path, nano, monkeypatch, lost):
    monkeypatch.setenv("PET_MAX_RESTARTS", "2")
    folder, chunks = tmp_path / "run", 160
    latents = "sink.latents=${output_dir}/latents.safetensors"
    process = restarting_run(folder, chunks, "stream.save_every_chunks=4", latents)
    begun(folder, process, "state/chunk.*")
    ranks(process)[lost].kill()
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    report = report_of(folder)
    assert f"started again (1): stream 0 goes on with chunk {report['state']['resumed_at']}" in err
    assert report["finished"] and report["chunks"] == chunks and report["state"]["resumed_at"] >= 4
    assert report["latents_sha256"] == nano(f"stream.chunks={chunks}")
    frames, seconds = decoded(folder / "video.mp4")
    assert frames == 12 * chunks and abs(seconds - frames / 16) < 0.1
    assert sorted(load_file(folder / "latents.safetensors")) == [f"chunk.{i:06d}" for i in range(chunks)]
    assert not list(folder.glob("earlier.*")) and not list(folder.glob("video.from-*"))


@pytest.mark.long
def test_several_streams_each_from_its_own_state(tmp_path, nano, monkeypatch):
    monkeypatch.setenv("PET_MAX_RESTARTS", "2")
    folder, chunks = tmp_path / "run", 120
    process = restarting_run(folder, chunks, "stream.save_every_chunks=8", "stream.count=2")
    begun(folder, process, "state/1/chunk.*")
    ranks(process)[1].kill()
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    for stream in report_of(folder)["streams"]:
        name = stream["stream"]
        assert stream["latents_sha256"] == nano(f"stream.id={name}", f"stream.chunks={chunks}")
        assert decoded(folder / f"video.{name}.mp4")[0] == 12 * chunks


@pytest.mark.parametrize("name", ["joint window", *map(thorough, [*RULES][1:])])
def test_every_history_rule_and_world_goes_on_where_a_rank_was_lost(tmp_path, monkeypatch, name):
    """And the oracle goes on with a state that the ranks have left."""
    monkeypatch.setenv("PET_MAX_RESTARTS", "2")
    base, made, rule = ruled(tmp_path, name), tmp_path / "made", RULES[name]
    plan = [one for one in rule.plan if not one.startswith("plan.workers")]
    process = start(
        "torchrun", 2, *base, *plan, "launcher.recover=exact", f"stream.save_every_chunks={rule.every}",
        f"output_dir={made}",
    )  # fmt: skip
    begun(made, process, f"state/chunk.{rule.every:06d}")
    ranks(process)[1].kill()
    expected = alone(tmp_path / "oracle", *base)["latents_sha256"]
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    found = report_of(made)
    assert found["latents_sha256"] == expected and found["state"]["resumed_at"] >= rule.every
    assert "started again (1)" in err
    after = alone(tmp_path / "after", *base, f"resume={made}")
    assert after["latents_sha256"] == expected and after["state"]["resumed_at"] == 3 * rule.every


def state(root: Path, chunk: int) -> None:
    folder = root / f"chunk.{chunk:06d}"
    folder.mkdir(parents=True)
    (folder / CONTENT).write_text(f'{{"chunk": {chunk}}}')


def test_what_each_stream_has_left(tmp_path, monkeypatch):
    config = config_of(*RECOVER, "stream.count=2", f"output_dir={tmp_path}")
    for chunk in (4, 8):
        state(tmp_path / "state" / "1", chunk)
    # An earlier run's, which had been put aside.
    state(tmp_path / "earlier.1" / "state" / "0", 12)
    assert {name: found and found.chunk for name, found in restarting.left(config).items()} == {"0": None, "1": 8}
    assert not restarting.goes_on(config)
    monkeypatch.setenv(restarting.COUNT, "2")
    assert restarting.goes_on(config)
    assert list(restarting.notes(config)) == ["started again (2): stream 0 begins anew, stream 1 goes on with chunk 8"]
    off = config_of("model=nano", "launcher=torchrun", f"output_dir={tmp_path}", "stream.count=2")
    assert not restarting.again(off) and not list(restarting.notes(off))


def test_it_is_said_at_the_start_what_a_restart_without_states_means(tmp_path):
    (line,) = restarting.notes(config_of(*RECOVER))
    assert line == (
        "launcher.recover=exact without stream.save_every_chunks: no state is saved on the way, so a restart "
        "(--max-restarts) begins every stream anew"
    )
    assert not list(restarting.notes(config_of(*RECOVER, "stream.save_every_chunks=4")))
    assert not list(restarting.notes(config_of("model=nano", "launcher.recover=exact", "launcher=local")))


def test_a_run_that_was_started_again_has_its_folder(monkeypatch):
    """Whose default holds the time of day."""
    kept, config = dist.HashStore(), config_of(*RECOVER, "output_dir=later")
    stores = [dist.PrefixStore(torchrun.attempt(number), kept) for number in range(3)]
    assert torchrun._before(config, stores[0]) is None
    stores[0].set("output_dir", "first")
    for number in (1, 2):
        monkeypatch.setenv(restarting.COUNT, str(number))
        assert torchrun._before(config, stores[number]) == "first"
    assert torchrun._before(config_of("model=nano", "launcher=torchrun"), stores[2]) is None
    assert torchrun._before(config, kept) is None, "the store went with the rank that had it"
