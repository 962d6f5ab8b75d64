"""Worlds on real processes give the one-device loop's bits: one stream that is handed from launcher to launcher, under
ever other plans, and two that different hands drive."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.control import begin
from launch.running import start as started
from tests.helpers import config_of
from tests.launch.losing import ended, made, recovered, strike, until
from tests.launch.ruled import LAYERS, RULES, SHARED, STEPS, alone, ruled
from tests.launch.started import report_of, start
from tests.launch.worlds import WORLDS, driven
from tests.patience import PATIENT_S

LEGS = (
    ("local", 2, LAYERS),
    ("torchrun", 4, ("plan=grid", "plan.grid=[2,2]")),
    ("ray", 2, STEPS),
    ("torchrun", 2, SHARED),
    ("local", 4, ("plan=layers", "plan.sequence_parallel=2")),
    ("ray", 2, SHARED),
    ("torchrun", 2, LAYERS),
)
"""(launcher, processes, plan)."""
LEG = 4
"""Chunks of each. What holds changes within all of them, and the widest window holds 3."""
AS_PROCESSES = {"local": ("launcher.threads=false",), "torchrun": (), "ray": ()}
TWO, HIT = 32, (8, 18)
"""Of two streams: chunks of each, and how many have left when a worker is lost."""


def planned(plan: tuple[str, ...]) -> tuple[str, ...]:
    """Without a number of workers, which the launcher says."""
    return tuple(one for one in plan if not one.startswith("plan.workers"))


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_one_stream_goes_from_launcher_to_launcher_and_from_plan_to_plan(tmp_path, world):
    base, kept = (*ruled(tmp_path, world), "sink.latents=${output_dir}/latents.safetensors"), ()
    last = f"stream.chunks={LEG * (len(LEGS) + 1)}"
    oracle = alone(tmp_path / "oracle", *base, last)["latents_sha256"]
    expected = load_file(tmp_path / "oracle" / "latents.safetensors")
    for i, (launcher, processes, plan) in enumerate(LEGS):
        folder, chunks = tmp_path / f"leg{i}", LEG * (i + 1)
        length = (f"stream.chunks={chunks}", f"stream.save_every_chunks={chunks}", f"output_dir={folder}")
        process = start(launcher, processes, *base, *planned(plan), *AS_PROCESSES[launcher], *length, *kept)
        _, err = process.communicate(timeout=PATIENT_S)
        assert process.returncode == 0, err
        report, kept = report_of(folder), (f"resume={folder}",)
        assert (report["launcher"], report["workers"], report["state"]["saved"]) == (launcher, processes, chunks)
        found = load_file(folder / "latents.safetensors")
        assert [*found] == [f"chunk.{chunk:06d}" for chunk in range(chunks - LEG, chunks)]
        assert all(x.equal(expected[name]) for name, x in found.items()), (launcher, plan)
    assert alone(tmp_path / "after", *base, last, *kept)["latents_sha256"] == oracle


def two(folder: Path, world: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """What two streams have in common, with a file of the orders that open them; and the hash of each of them alone."""
    base, orders, hashes = (*ruled(folder, world), f"stream.chunks={TWO}"), [], {}
    for hand, name in enumerate("ab"):
        source = driven(folder, world, hand)
        orders.append({"open": name, "source": source, "seed": hand})
        said = (f"source.{key}={path}" for key, path in source.items())
        found = alone(folder / f"alone_{name}", *base, *said, f"stream.id={name}", f"stream.seed={hand}")
        hashes[name] = found["latents_sha256"]
    (folder / "orders").write_text("".join(json.dumps(order) + "\n" for order in orders))
    assert hashes["a"] != hashes["b"]
    return (*base, f"control={folder}/orders", f"output_dir={folder}/run"), hashes


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["local", "ray"])
@pytest.mark.parametrize("world", ["keys and mouse", "camera by keys", "camera by poses", "acts"])
def test_two_hands_drive_two_streams_and_each_worker_is_lost_once(tmp_path, world, launcher):
    common, hashes = two(tmp_path, world)
    lasting = ("launcher.recover=exact", f"launcher.cuts={tmp_path}", f"launcher={launcher}", *AS_PROCESSES[launcher])
    config = config_of(*common, *RULES[world].plan, *lasting)
    with started(config, first=lambda pipeline: begin(pipeline, config)) as run:
        for lost, chunk in enumerate(HIT):
            until(lambda at=chunk: run.begun and min(made(run), made(run, 1)) >= at, run)
            strike(run, run.generation.processes[lost])
            recovered(run, lost)
        assert [ended(run, stream)[0] for stream in range(2)] == [*hashes.values()]


@pytest.mark.long
@pytest.mark.parametrize("world", ["driving", "camera by poses"])
def test_two_hands_drive_two_streams_on_ranks(tmp_path, world):
    common, hashes = two(tmp_path, world)
    process = start("torchrun", 4, *common, "plan=grid", "plan.grid=[2,2]")
    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    streams = report_of(tmp_path / "run")["streams"]
    assert {one["stream"]: one["latents_sha256"] for one in streams} == hashes
