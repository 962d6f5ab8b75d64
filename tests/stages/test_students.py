"""Files of published few-step students, as the code that wrote them lays them out: all are read as they are.

Layouts by the public code: guandeh17/Self-Forcing (which Deep Forcing runs), TencentARC/RollingForcing a1477d0,
JaydenLyh/Reward-Forcing 4317f5a. Each wraps the network in a module that calls it `model`; parts of it are wrapped once
more while it is trained, and the average of its weights is kept by the names that they have then.
"""

import re

import pytest
import torch

from conf.errors import UserError
from launch import inspect
from stages.build import build_network
from tests.checkpoints import SMALL, random_tensors, t2v_config, t2v_shapes
from tests.helpers import config_of

CONFIG = t2v_config(**SMALL)
SIZES = [
    "model.network.dim=48", "model.network.ffn_dim=80", "model.network.layers=4", "model.network.heads=4",
    "model.network.freq_dim=32", "model.network.text_dim=24", "model.network.text_tokens=8", "model.dtype=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(t2v_shapes(CONFIG))


def saved(tensors):
    """As a wrapped module's own `state_dict` has it."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def sharded(tensors):
    """As parameters are called while layers, and all of them, are wrapped for training."""
    inner = (re.sub(r"^(blocks\.\d+)\.", r"\1._fsdp_wrapped_module.", name) for name in tensors)
    return {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in zip(inner, tensors.values(), strict=True)}


def other(tensors):
    return {name: tensor + 1 for name, tensor in saved(tensors).items()}


LAYOUTS = {
    # Self-Forcing's, which Deep Forcing runs without training.
    "averaged alone": ("deep_forcing", lambda t: {"generator_ema": saved(t)}),
    "initial": ("wan21_t2v_1_3b", lambda t: {"generator": saved(t)}),
    # Rolling Forcing's: the average by wrapped names, beside what it averages and another network.
    "rolling": (
        "rolling_forcing",
        lambda t: {"generator": other(t), "critic": other(t) | {"x": torch.ones(1)}, "generator_ema": sharded(t)},
    ),
    "rolling, before it is averaged": ("rolling_forcing", lambda t: {"generator": saved(t), "critic": other(t)}),
    # Reward Forcing's: no dictionary around it.
    "reward": ("reward_forcing", saved),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_students_are_read(layout, tensors, tmp_path):
    model, made = LAYOUTS[layout]
    torch.save(made(tensors), tmp_path / "student.pt")
    config = config_of(f"model={model}", f"model.checkpoint={tmp_path}/student.pt", *SIZES)
    found = build_network(config.model, torch.device("cpu")).state_dict()
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lacks_or_is_too_much_is_said_in_a_line(layout, tensors, tmp_path):
    model, made = LAYOUTS[layout]
    for changed, line in (
        ({n: t for n, t in tensors.items() if n != "blocks.3.norm3.bias"}, "lacks 1 of "),
        (tensors | {"blocks.0.more.weight": torch.ones(2)}, "has 1 keys that this model does not have: model."),
        (tensors | {"head.modulation": torch.ones(1, 2, 47)}, "must have shape [1, 2, 48], found [1, 2, 47]"),
    ):
        torch.save(made(changed), tmp_path / "student.pt")
        config = config_of(f"model={model}", f"model.checkpoint={tmp_path}/student.pt", *SIZES)
        with pytest.raises(UserError, match=re.escape(line)) as refused:
            build_network(config.model, torch.device("cpu"))
        assert "\n" not in str(refused.value)


def test_a_file_without_a_student_is_refused(tensors, tmp_path):
    torch.save({"critic": saved(tensors), "step": 3}, tmp_path / "student.pt")
    config = config_of("model=rolling_forcing", f"model.checkpoint={tmp_path}/student.pt", *SIZES)
    with pytest.raises(UserError, match="holds no tensors by name but critic") as refused:
        build_network(config.model, torch.device("cpu"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_names_what_a_file_may_be(layout, tensors, tmp_path, capsys):
    torch.save(LAYOUTS[layout][1](tensors), tmp_path / "student.pt")
    assert inspect.main([str(tmp_path / "student.pt"), "model.network.heads=4", "model.network.text_tokens=8"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "saved as a few-step student, as Self-Forcing saves it; if it was trained for that: model=reward_forcing, "
        in text
    )
    assert "unknown keys none missing keys none other shapes none" in text


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_other_files_of_the_network_say_nothing_of_it(prefix, tensors, tmp_path, capsys):
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "other.pt")
    assert inspect.main([str(tmp_path / "other.pt"), "model.network.heads=4", "model.network.text_tokens=8"]) == 0
    assert "saved as" not in capsys.readouterr().out
