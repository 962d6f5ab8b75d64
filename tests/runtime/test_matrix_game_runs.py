"""Worlds that are walked: every plan gives the one-device loop's latents, and goes on from what any other has saved."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers import thorough
from tests.runtime.test_resume import Runs

CHUNKS, SAVED = 8, 5
"""A window holds 4 or 6 latent frames, which the state is well behind."""
FEW = "stream.width=48"
"""So narrow that a process that shares passes has 9 tokens, which ask 3 keys in the first chunk."""
SMALL = (
    "model.dtype=float32", "model.codec.kind=small", "model.network.dim=48", "model.network.ffn_dim=80",
    "model.network.heads=4", "model.network.layers=4", "model.network.freq_dim=32", "model.network.image_dim=20",
    "model.network.image_tokens=5", "model.network.actions.layers=[0,1,2]", "model.network.actions.embedded=12",
    "model.network.actions.heads=2", "model.network.actions.width=32", "model.network.actions.turned=[4,6,6]",
    "stream.height=32", "stream.width=64", "sink.video=null", f"stream.chunks={CHUNKS}",
)  # fmt: skip
PRESSED = {
    "matrix_game_2": [{"keys": ["forward", "left"], "mouse": [0.1, -0.1]}, {"mouse": [0.0, 0.1]}, {"keys": ["back"]}],
    "matrix_game_2_gta_drive": [{"keys": ["forward"], "mouse": [0.0, 0.1]}, {"action": "back"}, {"keys": []}],
    "matrix_game_2_templerun": [{"action": "jump"}, {"action": "turn_left"}, {"action": "none"}],
}
PLANS = {
    "sequential": (),
    "layers": ("plan=layers", "plan.layers=[1,2,1]"),
    "grid": ("plan=grid", "plan.grid=[2,2]"),
    "shared": ("plan=sequential", "plan.sequence_parallel=2"),
    "shared_layers": ("plan=layers", "plan.layers=[3,1]", "plan.sequence_parallel=2"),
}


@pytest.fixture(params=["matrix_game_2_gta_drive", "matrix_game_2_templerun", thorough("matrix_game_2")])
def world(request, tmp_path):
    """Overrides of one that is walked."""
    folder = tmp_path
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    rows = torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(3))
    save_file({"image_rows": rows}, folder / "rows.safetensors")
    said = PRESSED[request.param]
    lines = [{"frame": 7 * i} | said[i % len(said)] for i in range(1, 11)]
    (folder / "pressed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [f"source.{name}={folder / file}" for name, file in (
        ("image", "picture.png"), ("actions", "pressed.jsonl"), ("tensors", "rows.safetensors"),
    )]  # fmt: skip
    return f"model={request.param}", *SMALL, *told


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


def test_plans_are_exact_and_go_on_from_each_other(world, runs):
    made = {name: runs(name, *world, *plan, f"stream.save_every_chunks={SAVED}") for name, plan in PLANS.items()}
    (expected,) = {report["latents_sha256"] for report in made.values()}
    for name, saved in (("layers", "shared"), ("sequential", "grid"), ("shared", "shared_layers")):
        after = runs(f"{name}_after", *world, *PLANS[name], f"resume={runs.folder / saved}")
        assert (after["latents_sha256"], after["state"]["resumed_at"]) == (expected, SAVED)


@pytest.mark.long
def test_where_a_processor_has_a_kernel_for_few_tokens_it_rounds_in_another_way(world, runs):
    """Plans that share passes are alike among themselves, and others among themselves; see `docs/worlds.md`."""
    found, latents = {}, {}
    for name in ("sequential", "layers", "shared", "shared_layers"):
        file = runs.folder / f"{name}.safetensors"
        made = runs(name, *world, FEW, *PLANS[name], "stream.chunks=4", f"sink.latents={file}")
        found[name], latents[name] = made["latents_sha256"], load_file(file)
    assert found["sequential"] == found["layers"] and found["shared"] == found["shared_layers"]
    alone, shared = latents["sequential"], latents["shared"]
    assert all((shared[key] - x).abs().max() <= 1e-5 * x.abs().max() for key, x in alone.items())
