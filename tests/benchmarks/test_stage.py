"""The stage benchmark: its counts, its reader of models, and a whole run at a small size."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import models, stage
from benchmarks.counting import count
from launch.planning import cluster_of
from runtime import arithmetic
from runtime.arithmetic import layer_flops
from stages.codec.wan.network import WanDecoder
from tests.helpers import config_of, thorough

TINY = (
    "height=64", "width=64", "dtype=float32", "network.dim=32", "network.ffn_dim=64", "network.heads=2",
    "network.layers=2",
)  # fmt: skip
TEXT = ("network.text_dim=16", "network.text_tokens=4")
WORLDS = {
    "matrix_game_2": ("network.image_dim=20", "network.image_tokens=5", "network.actions.layers=[0]"),
    "lingbot_world_fast": TEXT,
}
META = torch.device("meta")


@pytest.fixture(scope="module")
def live_avatar():
    return stage.Stage(models.model("live_avatar_14b"), META)


@pytest.mark.parametrize("name", sorted(p.stem for p in models.FOLDER.glob("*.yaml")))
def test_models_are_those_that_hydra_composes(name):
    composed = config_of(f"model={name}").model
    composed.checkpoint = composed.codec.checkpoint = None
    assert models.model(name) == composed


def test_keys_can_be_replaced_and_unknown_ones_are_refused():
    changed = models.model("live_avatar_14b", ["network.layers=40", "height=512", "dtype=float32"])
    assert (changed.height, changed.dtype) == (512, "float32")
    with pytest.raises(Exception, match="did you mean layers"):
        models.model("nano", ["network.layer=3"])
    with pytest.raises(Exception, match="did you mean live_avatar_14b"):
        models.model("live_avatar")


def test_floor_of_a_step(live_avatar):
    """At 704x384 a sheet's sum of linears (76), sound (4) and self-attention (40) is about 118; text adds 1.3."""
    (counted, once), n = live_avatar.count(), live_avatar.model.network
    new, keys = 3 * 44 * 24, live_avatar.denoiser.layout.size
    text = n.layers * 4 * new * n.text_tokens * n.dim
    assert (counted.flops - text) / 1e12 == pytest.approx(118, rel=0.02)
    assert counted.flops / 1e12 == pytest.approx(120.8, rel=0.001)
    assert counted.attention == pytest.approx(text + n.layers * 4 * new * keys * n.dim, rel=0.001)
    assert counted.flops == pytest.approx(sum(layer_flops(config_of("model=live_avatar_14b"))), rel=0.002)
    # Weights once, and keys and values once, are most of what moves: nothing of the scores' size is counted.
    assert 1.0 < counted.bytes / (live_avatar.weight_bytes + live_avatar.bank_bytes) < 2.0
    assert once is None


@pytest.mark.parametrize("name", ["reward_forcing", "deep_forcing", "rolling_forcing"])
def test_a_step_of_a_history_rule_is_what_planners_count(name):
    """Weights of the text's and time's embeddings aside, which are no part of a layer."""
    made = stage.Stage(models.model(name), META)
    (counted, _), planned = made.count(), arithmetic.rule_cost(config_of(f"model={name}"))
    assert counted.flops == pytest.approx(sum(work.flops for work in planned.step.layers), rel=0.002)
    new, keys, heads, channels = stage.attention_shape(made.model)
    assert new == made.frames * 1560 and (heads, channels) == (12, 128)
    assert keys == {"reward_forcing": 9, "deep_forcing": 19, "rolling_forcing": 21}[name] * 1560


@pytest.mark.parametrize(
    ("name", "tokens", "frames"),
    [
        ("matrix_game_2", 880, 6),
        thorough("matrix_game_2_gta_drive", 880, 4),
        thorough("matrix_game_2_templerun", 880, 6),
        ("lingbot_world_fast", 1560, 21),
    ],
)
def test_a_step_of_a_world_is_what_plans_are_made_with(name, tokens, frames):
    """Some of its layers, of their own width. What they have in common of a camera is left out of plans."""
    few = ["network.layers=8", *(["network.actions.layers=[0,1,2,3]"] if tokens == 880 else [])]
    made, lines = stage.Stage(models.model(name, few), META), [f"model={name}", *(f"model.{line}" for line in few)]
    (step, once), planned = made.count(), arithmetic.rule_cost(config_of(*lines))
    n, shared = made.model.network, sum(work.flops for work in planned.once)
    assert step.flops == pytest.approx(sum(work.flops for work in planned.step.layers), rel=0.002)
    new, keys, heads, channels = stage.attention_shape(made.model)
    assert (new, keys) == (3 * tokens, frames * tokens) and heads * channels == n.dim
    if shared:
        assert once.flops == pytest.approx(shared + 2 * new * n.dim * (2 * n.dim + n.ray_values))
    else:
        assert once.flops < 1e-4 * step.flops
    for cluster in ("h100x4", "h800x5"):
        found = cluster_of(config_of(*lines, f"cluster={cluster}"))
        ((_, times),) = found.times.items()
        rate = found.devices[0].sheet.flops
        assert sum(times.layer_s) * rate == pytest.approx(step.flops, rel=0.002)
        assert times.once_s * rate == pytest.approx(shared)


@pytest.mark.parametrize("name", ["reward_forcing", "deep_forcing", "rolling_forcing", *WORLDS])
def test_rules_and_worlds_have_rows(name, tmp_path, monkeypatch):
    assert name in [row for row, _ in stage.SUITE]
    monkeypatch.setenv("OUT", str(tmp_path))
    arguments = [name, *TINY, *WORLDS.get(name, TEXT), "--device", "cpu", "--repeats", "2"]
    assert stage.main([*arguments, "--decoders", "none"]) == 0
    (file,) = tmp_path.glob(f"stage-cpu-{name}.json")
    found = json.loads(file.read_text())["measured"]
    assert found["step"]["plain"]["ms"] > 0 and found["fps"]["plain"] > 0
    assert ("once" in found["step"]["plain"]) == (name in WORLDS)


def test_floor_of_a_decode():
    with META:
        decoder = WanDecoder().to(torch.bfloat16)
        latents, state = torch.empty(1, 16, 3, 88, 48, dtype=torch.bfloat16), decoder.start()
        decoder(latents, state)
        assert count(lambda: decoder(latents, state)).flops / 1e12 == pytest.approx(27.5, rel=0.02)


def test_eight_bits_do_the_same_with_half_the_bytes():
    model = models.model("live_avatar_14b", ["network.layers=4", "network.audio.layers=[0,2]"])
    plain, eight = (stage.Stage(model, META, variant).count().step for variant in ("plain", "fp8_row"))
    assert eight.flops == plain.flops
    assert eight.bytes < 0.8 * plain.bytes


def test_a_period_is_the_slowest_stage_or_all_of_a_chunk():
    same, clean = models.model("live_avatar_14b"), models.model("wan21_t2v_14b")
    assert stage.fps(same, 0.25, 0.15) == pytest.approx(48)
    assert stage.fps(same, 0.1, 0.15) == pytest.approx(80)
    assert stage.fps(clean, 0.2, 0.15) == pytest.approx(12)
    # Four steps, what is made before each, and the clean pass.
    assert stage.fps(clean, 0.1, 0.15, 0.125) == pytest.approx(12)
    # One pass over five chunks, and one over one.
    assert stage.fps(models.model("rolling_forcing"), 0.5, 0.15) == pytest.approx(20)


def test_a_whole_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    arguments = [
        "live_avatar_14b",
        *TINY,
        *TEXT,
        "network.audio.layers=[0]",
        "--device",
        "cpu",
        "--repeats",
        "2",
        "--decoders",
        "taehv",
    ]
    assert stage.main([*arguments, "--variants", "plain,fp8_row"]) == 0
    (file,) = tmp_path.glob("stage-cpu-live_avatar_14b.json")
    found = json.loads(file.read_text())["measured"]
    assert set(found["step"]) == set(found["fps"]) == {"plain", "fp8_row"}
    for result in [*found["step"].values(), *found["decode"].values()]:
        assert result["ms"] > 0
        assert result["floor_ms"] > 0
        assert result["counted_bytes"] > 0
    assert found["attention_used"] in found["attention"]
    assert "TFLOP/s" in capsys.readouterr().out


def test_mistakes_are_one_line(capsys):
    assert stage.main(["nano", "--variants", "quick"]) == 2
    assert stage.main(["nani"]) == 2
    assert stage.main(["nano", "network.dims=3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3


def test_it_needs_torch_numpy_and_safetensors_only():
    code = (
        "import sys; import benchmarks.stage; heavy = {'hydra', 'omegaconf', 'yaml', 'ray', 'av', 'PIL', 'rich',"
        " 'transformers', 'diffusers'}; print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
