"""LingBot-World's files: names and sizes, what tells them, which steps a configuration has."""

import re
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from launch import inspect
from stages.build import build_network, whole
from stages.denoise.schedule import schedule_of
from stages.inputs import inputs_of
from stages.models.lingbot.sizes import published
from tests.checkpoints import SMALL, lingbot_config, lingbot_shapes, random_tensors, t2v_config, write_folder
from tests.helpers import config_of

CPU = torch.device("cpu")
CONFIG = lingbot_config(**SMALL)
CHANNELS = {"cam": 6, "act": 7}
SIZES = [
    "model.network.dim=48", "model.network.ffn_dim=80", "model.network.layers=4", "model.network.heads=4",
    "model.network.freq_dim=32", "model.network.text_dim=24", "model.network.text_tokens=8",
]  # fmt: skip
MODEL = ("model=lingbot_world_fast", "model.dtype=float32", "model.text.kind=table")


@pytest.fixture(scope="module", params=CHANNELS)
def control(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(control):
    return random_tensors(lingbot_shapes(CONFIG, CHANNELS[control]))


def model_of(path, *overrides: str):
    return config_of(*MODEL, *SIZES, f"model.checkpoint={path}", *overrides).model


def test_names_and_shapes_are_the_published_ones():
    model = config_of("model=lingbot_world_fast", "model.text.checkpoint=x").model
    found = {name: tuple(shape) for name, shape in whole(model).items()}
    assert found == lingbot_shapes(lingbot_config() | {"text_dim": 4096})
    assert len(found) == 1421
    assert sum(torch.Size(shape).numel() for shape in found.values()) == pytest.approx(18.54e9, rel=1e-3)
    camera = [torch.Size(s).numel() for n, s in found.items() if re.search(r"\.cam_|c2ws|wancamctrl", n)]
    assert sum(camera) == pytest.approx(4.26e9, rel=2e-3)
    assert lingbot_shapes(lingbot_config(), 7)["patch_embedding_wancamctrl.weight"] == (5120, 1792)


def test_folders_and_files_of_both_controls_load(control, tensors, tmp_path):
    """Sizes are the folder's; what tells a camera is the file's, and never what a path is called."""
    folder = write_folder(tmp_path / "lingbot_cam_fast", CONFIG, tensors)
    save_file({f"model.diffusion_model.{n}": t for n, t in tensors.items()}, tmp_path / "act.safetensors")
    for path in (folder, tmp_path / "act.safetensors"):
        model = model_of(path, f"model.network.control={control}", "model.network.dim=48")
        found = build_network(model, CPU).state_dict()
        assert set(found) == set(tensors) and all(torch.equal(found[n], tensors[n]) for n in found)
        camera = next(one for one in inputs_of(model) if one.name == "camera")
        assert camera.shape == (3, 16 if control == "cam" else 20)
    other = "act" if control == "cam" else "cam"
    told = rf"patch_embedding_wancamctrl\.weight must have shape .*; it is LingBot-World of \S+={control}: everframe"
    with pytest.raises(UserError, match=told):
        build_network(model_of(folder, f"model.network.control={other}"), CPU)


def test_inspect_names_the_model_and_its_control(control, tensors, tmp_path, capsys):
    write_folder(tmp_path / "folder", CONFIG, tensors)
    save_file(tensors, tmp_path / "one.safetensors")
    for path in (tmp_path / "folder", tmp_path / "one.safetensors"):
        assert inspect.main([str(path), "model.network.heads=4", "model.network.text_tokens=8"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "family LingBot-World" in text and "model lingbot_world_fast (clean, 4 steps" in text
        assert f"control {control}" in text
        assert "unknown keys none missing keys none other shapes none" in text


def test_what_lacks_or_is_too_much_is_said_in_a_line(tensors, control, tmp_path):
    for changed, line in (
        ({n: t for n, t in tensors.items() if n != "blocks.3.cam_shift_layer.bias"}, "lacks 1 of "),
        (tensors | {"img_emb.proj.0.weight": torch.ones(2)}, "has 1 keys that this model does not have: img_emb"),
        (tensors | {"c2ws_hidden_states_layer2.bias": torch.ones(47)}, "must have shape [48], found [47]"),
    ):
        save_file(changed, path := tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=re.escape(line)) as refused:
            build_network(model_of(path, f"model.network.control={control}"), CPU)
        assert "\n" not in str(refused.value)


def test_files_of_other_models_are_told_from_it(tmp_path, capsys):
    """A camera of a width that nothing is known of, image-to-video alone, and two networks that share the steps."""
    camera = random_tensors(lingbot_shapes(CONFIG, 5))
    plain = {n: t for n, t in camera.items() if not re.search(r"\.cam_|c2ws|wancamctrl", n)}
    for some in (camera, plain):
        save_file(some, path := tmp_path / "x.safetensors")
        assert inspect.main([str(path)]) == 2
        assert "is Wan image-to-video (36 channels in, 16 out)" in capsys.readouterr().err
        with pytest.raises(UserError, match="is Wan image-to-video"):
            build_network(model_of(path), CPU)
    for part in ("high_noise_model", "low_noise_model"):
        write_folder(tmp_path / "base" / part, CONFIG, plain)
    with pytest.raises(UserError, match="two experts"):
        model_of(tmp_path / "base")
    assert published(CONFIG)["in_channels"] == 16
    for said, rule in (
        (t2v_config(**SMALL), "model_type=t2v"),
        (CONFIG | {"in_dim": 32}, "in_dim=32"),
        (CONFIG | {"in_dim": None}, "in_dim=null: must be a whole number"),
        (CONFIG | {"out_dim": "16"}, 'out_dim="16": must be a whole number'),
    ):
        with pytest.raises(UserError, match=rule):
            published(said)


def test_steps_are_the_published_triples():
    """Worked out in fractions: whole timesteps, x0 by the first level that has one, noise by the second."""
    for shift in (10, 5, 3):
        levels = [Fraction(999, 1000) * (1000 - i) / 1000 for i in range(1000)]
        levels = [shift * s / (1 + (shift - 1) * s) for s in levels]
        expected = []
        for index in (0, 179, 358, 679):
            t = int(1000 * levels[index])
            alike = [level for level in levels if int(1000 * level) == t]
            expected.append((t, float(alike[0]), float(alike[min(1, len(alike) - 1)])))
        found = schedule_of(config_of("model=lingbot_world_fast", f"model.shift={shift}").model).steps
        assert [step.timestep for step in found] == [t for t, _, _ in expected]
        for step, (_, sigma, renoised) in zip(found, expected, strict=True):
            assert (step.sigma, step.renoised) == pytest.approx((sigma, renoised), abs=1e-12)
    assert [t for t, _, _ in expected] != [999, 978, 947, 825]
    ten = schedule_of(config_of("model=lingbot_world_fast").model).steps
    assert [step.timestep for step in ten] == [999, 978, 947, 825]
    assert all(step.timestep / 1000 <= step.renoised <= step.sigma < step.timestep / 1000 + 1e-3 for step in ten)
    one = config_of("model=lingbot_world_fast", "model.steps=1", "model.timesteps=[1000]").model
    assert schedule_of(one).steps == ten[:1]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.timesteps=null", "a table of 1000"),
        ("model.timesteps=[1000,821.5,642,321]", "whole numbers"),
        ("model.reference=true", "the picture enters as channels"),
        ("model.translation_scale=null", "are divided by it"),
        ("model.translation_scale=0", "must be above zero"),
        ("model.translation_scale=1e-300", "are divided by it, at least 1e-06"),
        ("model.network.control=keys", "must be one of cam, act"),
        ("model.network.camera_kept=all", "must be one of terms, state, nothing"),
    ],
)
def test_what_it_cannot_be_is_said(override, line):
    with pytest.raises(UserError, match=line):
        config_of("model=lingbot_world_fast", override)


def test_others_have_no_camera():
    with pytest.raises(UserError, match="family wan has no camera"):
        inputs_of(config_of("model=wan21_t2v_1_3b", "model.translation_scale=0.2").model)
