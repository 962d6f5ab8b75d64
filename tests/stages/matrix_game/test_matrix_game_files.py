"""Matrix-Game 2's files: names and sizes, what tells one model from another, what fits no model."""

import re

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from conf.typed import typed
from launch import inspect
from stages.build import build_network, whole
from stages.inputs import inputs_of
from stages.models.matrix_game_2.sizes import Actions, published
from tests.checkpoints import matrix_config, matrix_shapes, random_tensors, t2v_config, write_folder
from tests.helpers import config_of

CPU, IMAGE = torch.device("cpu"), 20
ACTIONS = {
    "blocks": [0, 2], "heads_num": 2, "hidden_size": 12, "keyboard_hidden_dim": 32, "mouse_hidden_dim": 32,
    "rope_dim_list": [4, 6, 6], "mouse_qk_dim_list": [4, 6, 6],
}  # fmt: skip
SMALL = {"dim": 48, "ffn_dim": 80, "num_layers": 4, "num_heads": 4, "freq_dim": 32}
MODELS = {"universal": "matrix_game_2", "drive": "matrix_game_2_gta_drive", "run": "matrix_game_2_templerun"}
TOLD = ("model.network.image_tokens=5",)
"""What neither shapes nor a config.json say."""
IN_FILE = (*TOLD, "model.network.heads=4", "model.network.actions.turned=[4,6,6]")
"""Of a file alone, what shapes do not say either."""


AS_CONFIGURED = (
    "model.network.dim=48", "model.network.ffn_dim=80", "model.network.layers=4", "model.network.freq_dim=32",
    "model.network.actions.layers=[0,2]", "model.network.actions.heads=2", "model.network.actions.width=32",
    "model.network.actions.embedded=12",
)  # fmt: skip
"""What the shapes of a file say, too."""


def config(variant: str = "universal", **actions) -> dict:
    return matrix_config(variant, ACTIONS | actions, **SMALL)


@pytest.fixture(scope="module", params=MODELS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(variant):
    return random_tensors(matrix_shapes(config(variant), IMAGE))


def model_of(variant: str, path, *overrides: str):
    base = (f"model={MODELS[variant]}", f"model.network.image_dim={IMAGE}", "model.dtype=float32", *TOLD)
    return config_of(*base, f"model.checkpoint={path}", *overrides).model


def test_names_and_shapes_are_the_published_ones(variant):
    keys, billions = {"universal": (1114, 1.619), "drive": (1114, 1.619), "run": (964, 1.509)}[variant]
    model = config_of(f"model={MODELS[variant]}").model
    found = {name: tuple(shape) for name, shape in whole(model).items()}
    assert found == matrix_shapes(matrix_config(variant)) and len(found) == keys
    assert sum(torch.Size(shape).numel() for shape in found.values()) == pytest.approx(billions * 1e9, rel=1e-3)
    # The published config.json says what the model's own YAML does.
    told = published(matrix_config(variant))
    inside = {name.removeprefix("actions."): value for name, value in told.items() if name.startswith("actions.")}
    assert typed(Actions, vars(model.network.actions) | inside, "") == model.network.actions
    assert all(getattr(model.network, name) == value for name, value in told.items() if "." not in name)


def test_every_weight_of_folders_and_files_is_read(variant, tensors, tmp_path):
    """Under the prefix that published files have, and those of norms that are not applied with them."""
    folder = write_folder(tmp_path / "folder", config(variant), {f"model.{n}": t for n, t in tensors.items()})
    found = build_network(model_of(variant, folder), CPU)
    state = found.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert found.acting == [0, 2] and found.config.in_channels == 16
    unapplied = [name for name in state if re.search(r"(img|key)_attn_[qk]_norm", name)]
    assert len(unapplied) == (4 if variant == "run" else 8)
    widths = {one.name: one.shape[1] for one in inputs_of(model_of(variant, folder)) if one.controls}
    keys = {"keyboard": {"universal": 4, "drive": 2, "run": 7}[variant]}
    assert widths == keys | ({} if variant == "run" else {"mouse": 2})


def test_inspect_tells_one_from_another(variant, tensors, tmp_path, capsys):
    write_folder(tmp_path / "folder", config(variant), tensors)
    save_file({f"model.{n}": t for n, t in tensors.items()}, tmp_path / "one.safetensors")
    for path, more in ((tmp_path / "folder", TOLD), (tmp_path / "one.safetensors", IN_FILE)):
        assert inspect.main([str(path), *more]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "family Matrix-Game 2, " in text and f"model {MODELS[variant]} (clean, " in text
        assert "unknown keys none missing keys none other shapes none" in text


def test_what_lacks_or_is_too_much_is_said_in_a_line(variant, tensors, tmp_path):
    part = "blocks.2.action_model"
    for changed, line in (
        ({n: t for n, t in tensors.items() if n != f"{part}.key_attn_k_norm.weight"}, "lacks 1 of "),
        (tensors | {f"{part}.proj_keyboard.bias": torch.ones(48)}, "has 1 keys that this model does not have: "),
        (tensors | {f"{part}.keyboard_attn_kv.weight": torch.ones(64, 143)}, "must have shape [64, 144]"),
        ({n.replace("blocks.2.action", "blocks.1.action"): t for n, t in tensors.items()}, "this model does not have"),
    ):
        write_folder(tmp_path, config(variant), changed)
        with pytest.raises(UserError, match=re.escape(line)) as refused:
            build_network(model_of(variant, tmp_path), CPU)
        assert "\n" not in str(refused.value)


def test_one_models_files_are_not_anothers(variant, tensors, tmp_path):
    """A folder says what can be pressed; so does a file, by its shapes."""
    write_folder(tmp_path / "folder", config(variant), tensors)
    save_file(tensors, tmp_path / "one.safetensors")
    for other in sorted(MODELS.keys() - {variant}):
        with pytest.raises(UserError, match=r"actions\.(keyboard|mouse)=\d: the model has \d .*name the model"):
            model_of(other, tmp_path / "folder")
    keys = {"universal": 4, "drive": 2, "run": 7}[variant]
    with pytest.raises(UserError, match=rf"; it is Matrix-Game 2, .* of \S*keyboard={keys}: everframe inspect says"):
        build_network(model_of(other, tmp_path / "one.safetensors", *IN_FILE[1:], *AS_CONFIGURED), CPU)
    with pytest.raises(UserError, match=r"config\.json: is of Matrix-Game: .*model=matrix_game_2"):
        config_of("model=wan21_t2v_1_3b", f"model.checkpoint={tmp_path / 'folder'}")


def test_the_foundation_model_is_named_and_refused(tmp_path, capsys):
    said = config(blocks=[0, 1, 2, 3]) | {"local_attn_size": -1}
    tensors = random_tensors(matrix_shapes(said, IMAGE))
    write_folder(tmp_path, said, tensors)
    rule = r"is (of )?the foundation model of Matrix-Game 2: it takes many steps"
    assert inspect.main([str(tmp_path)]) == 2
    assert re.search(rule, capsys.readouterr().err)
    with pytest.raises(UserError, match=rule):
        model_of("universal", tmp_path)
    with pytest.raises(UserError, match=rule):
        save_file(tensors, path := tmp_path / "one.safetensors")
        build_network(model_of("universal", path), CPU)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"windows_size": 4}, "action_config.windows_size=4: is not supported, only 3"),
        ({"qkv_bias": True}, "action_config.qkv_bias=True"),
        ({"mouse_hidden_dim": 64}, "action_config.mouse_hidden_dim=64: is not keyboard_hidden_dim=32"),
        ({"mouse_qk_dim_list": [8, 4, 4]}, "action_config.mouse_qk_dim_list=[8, 4, 4]: is not rope_dim_list"),
    ],
)
def test_what_a_config_asks_for_and_is_not_here(said, line):
    with pytest.raises(UserError, match=re.escape(line)):
        published(config(**said))


def test_what_no_config_of_it_says():
    for said, line in (
        (t2v_config(), "says no action_config"),
        (config() | {"in_dim": 35}, "in_dim=35: is not latents twice"),
        (config() | {"sink_size": 1}, "sink_size=1"),
    ):
        with pytest.raises(UserError, match=line):
            published(said)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.timesteps=[1000,666.5,333]", "whole numbers of a table of 1000"),
        ("model.warp=false", "whole numbers of a table of 1000, which is shifted"),
        ("model.network.actions.heads=15", "must divide width=1024"),
        ("model.network.actions.turned=[8,28,30]", "three even numbers, all 64 channels"),
        ("model.network.actions.layers=[0,30]", "layers are 0 to 29, each once; remove [30]"),
        ("model.network.actions.layers=[0,2,0]", "layers are 0 to 29, each once; remove [0]"),
        ("model.network.actions.keyboard=5", "the model has 4 (forward, back, left, right)"),
    ],
)
def test_what_it_cannot_be_is_said(override, line):
    with pytest.raises(UserError, match=re.escape(line)):
        config_of("model=matrix_game_2", override)
