"""LingBot-World in whole runs: from keys or poses, a picture and prompts to latents, the same under every plan, in
several streams, and saved in the middle."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.unchanged import WAN
from stages.models.lingbot.moves import CONTROLS, moved
from tests.helpers import sampled
from tests.runtime.test_resume import Runs

CHUNKS, SAVED = 7, 4
"""The window of 9 with 3 of attention sink has gone round where it is saved."""
BASE = (
    "model=lingbot_world_fast", *WAN, "model.codec.kind=small", "sink.video=null", "stream.height=64",
    "stream.width=64", "model.window_frames=9", "model.network.dim=96", "model.network.heads=16",
    f"stream.chunks={CHUNKS}",
    "stream.events=[{chunk: 3, prompt: other}, {chunk: 5, prompt: third}]",
)  # fmt: skip
FRAMES = 12 * CHUNKS
MODELS = {
    "cam": ("model.network.control=cam",),
    "act, state": ("model.network.control=act", "model.network.camera_kept=state"),
    "no window": ("model.window_frames=30", "model.sink_frames=0"),
    "slots, again": ("model.positions=slot", "model.prompt_switch=recache"),
}
PLANS = {
    "layers": ("plan=layers", "plan.layers=[3,2,1]"),
    "timestep": ("plan=timestep", "plan.workers=3"),
    "grid": ("plan=grid", "plan.grid=[2,2]"),
    "shared by 2": ("plan=sequential", "plan.sequence_parallel=2"),
    "shared by 4": ("plan=sequential", "plan.sequence_parallel=4"),
    "shared by 8": ("plan=sequential", "plan.sequence_parallel=8"),
    "shared layers": ("plan=layers", "plan.sequence_parallel=2"),
}
KEPT = {
    ("cam", "layers"), ("cam", "shared by 8"), ("act, state", "grid"), ("act, state", "shared layers"),
    ("slots, again", "shared by 2"), ("slots, again", "timestep"),
}  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder, its sources, and what was run in it."""
    folder = tmp_path_factory.mktemp("known")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    said = [(0, ["forward"]), (7, ["forward", "look_left"]), (30, ["right", "look_up"]), (42, []), (57, ["back"])]
    (folder / "keys.jsonl").write_text("".join(json.dumps({"frame": f, "keys": k}) + "\n" for f, k in said))
    sources = (f"source.image={folder}/picture.png", f"source.actions={folder}/keys.jsonl")
    return folder, sources, {}


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


def alone(runs, known, model: str) -> str:
    """One worker's, which saves on its way."""
    folder, sources, found = known
    if model not in found:
        kept, save = Runs(folder, runs.capsys), f"stream.save_every_chunks={SAVED}"
        found[model] = kept(str([*MODELS].index(model)), *BASE, *sources, *MODELS[model], save)["latents_sha256"]
    return found[model]


@pytest.mark.parametrize(("model", "plan"), sampled([(m, p) for m in MODELS for p in PLANS], KEPT))
def test_plans_are_exact_and_go_on_from_each_other(runs, known, model, plan):
    expected, (folder, sources, _) = alone(runs, known, model), known
    what = (*BASE, *sources, *MODELS[model])
    made = runs("made", *what, *PLANS[plan], f"stream.save_every_chunks={SAVED + 1}")
    assert made["latents_sha256"] == expected
    after = runs("after", *what, *PLANS[plan], f"resume={folder / str([*MODELS].index(model))}")
    assert (after["latents_sha256"], after["state"]["resumed_at"]) == (expected, SAVED)
    back = runs("back", *what, f"resume={runs.folder / 'made'}")
    assert (back["latents_sha256"], back["state"]["resumed_at"]) == (expected, SAVED + 1)


def test_several_streams_keep_the_hash_they_have_alone(job, known):
    what = (*BASE, *known[1], "stream.chunks=5")
    both = job(*what, "stream.count=2", *PLANS["layers"])["streams"]
    for i, found in enumerate(both):
        assert found["latents_sha256"] == job(*what, f"stream.id={i}")["latents_sha256"]


def test_all_that_drives_it_matters_and_keys_are_the_poses_that_they_give(job, known, tmp_path):
    folder, sources, _ = known

    def run(*overrides: str) -> str:
        return job(*BASE, *sources, "stream.chunks=3", "stream.events=[]", *overrides)["latents_sha256"]

    expected, rows, now = run(), [], {}
    said = {line["frame"]: line["keys"] for line in map(json.loads, (folder / "keys.jsonl").read_text().splitlines())}
    for frame in range(FRAMES):
        now = {key: float(key in said[frame]) for key in CONTROLS.keys} if frame in said else now
        rows.append(tuple(now.values()))
    poses = [np.eye(4)]
    for row in rows[:-1]:
        poses.append(moved(poses[-1], row))
    np.save(tmp_path / "poses.npy", np.stack(poses))
    given = {"camera_poses": torch.from_numpy(np.stack(poses))}
    save_file(given, tmp_path / "given.safetensors")
    still = "source.actions=null"
    assert run(still, f"source.camera={tmp_path}/poses.npy") == expected
    assert run(still, f"source.tensors={tmp_path}/given.safetensors") == expected
    lens, scale = "source.intrinsics=[500,500,416,240]", "model.translation_scale=0.3"
    assert len({expected, *map(run, (still, "source.image=null", lens, scale, "stream.prompt=dog"))}) == 6


def test_what_is_kept_of_a_camera_is_in_the_plan(runs, known):
    """Bytes of a stream that a plan says are those that its workers have."""
    for kept, numbers in (("terms", 2), ("state", 1), ("nothing", 0)):
        report = runs(kept, *BASE, f"model.network.camera_kept={kept}", *PLANS["shared by 2"], "stream.chunks=1")
        tokens = 3 * 16
        banks = 6 * 9 * 16 * 96 * 2 * 4 + 6 * 3 * 16 * 96 * 4  # keys and values, and raw keys of the attention sink
        assert sum(report["bank_bytes"].values()) == banks + 6 * numbers * tokens * 96 * 4
