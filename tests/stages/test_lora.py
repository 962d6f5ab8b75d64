"""A merged LoRA is PEFT's forward, in every spelling, for the weights that are read; what fits nothing is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import UserError
from stages.build import Checkpoint, build_network
from stages.denoise.passes import whole_clip
from stages.denoise.rope import Rope
from stages.dit.keys import original_name
from stages.dit.network import Drive
from tests.checkpoints import (
    SMALL,
    lora_tensors,
    random_tensors,
    s2v_config,
    s2v_shapes,
    t2v_config,
    t2v_shapes,
    write_folder,
)
from tests.helpers import config_of

CPU = torch.device("cpu")
CONFIG = t2v_config(**SMALL)
SHAPES = t2v_shapes(CONFIG)
RANK = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("base"), CONFIG, random_tensors(SHAPES))


def network(base, lora, *overrides, layers=None):
    config = config_of(
        "model=wan21_t2v_1_3b", f"model.checkpoint={base}", "model.dtype=float32", f"model.lora={lora}", *overrides
    )
    return build_network(config.model, CPU, layers)


def test_a_merged_lora_is_pefts_forward(base, tmp_path):
    """diffusers' transformer with PEFT's layers unmerged, against ours with both files; alpha is not the rank."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    tensors = random_tensors(SHAPES)
    model = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, ffn_dim=80, num_layers=4, freq_dim=32, text_dim=24,
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    model.load_state_dict({k: tensors[original_name(k)] for k in model.state_dict()})
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=4, target_modules=targets, lora_dropout=0.0))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.3)
    model.save_lora_adapter(tmp_path, weight_name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4, "peft_type": "LORA"}))

    x, text, t = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 8, 24), torch.tensor([700.0])
    with torch.no_grad():
        expected = model(x, t, text, return_dict=False)[0]
        model.disable_adapters()
        unadapted = model(x, t, text, return_dict=False)[0]
        ours = network(base, tmp_path)
        drive = Drive(ours.time_terms(ours.time_embeddings(t[None])), ours.text_states(text))
        found = ours(x, drive, whole_clip(Rope(12, 4, 4), 2, ours))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (unadapted - expected).abs().max() > 0.1 * expected.abs().max()


def flattened(key):
    module, rest = key.split(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{rest}"


DIFFUSERS = [
    ("self_attn.o", "attn1.to_out.0"), ("cross_attn.o", "attn2.to_out.0"), ("self_attn.", "attn1.to_"),
    ("cross_attn.", "attn2.to_"), ("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"),
]  # fmt: skip


def as_diffusers(key):
    for ours, theirs in DIFFUSERS:
        if ours in key:
            return "transformer." + key.replace(ours, theirs, 1)
    raise AssertionError(key)


DOWN_UP = {"lora_A": "lora_down", "lora_B": "lora_up"}


def down_up(key, spelled=DOWN_UP):
    for ours, theirs in spelled.items():
        key = key.replace(ours, theirs)
    return key


RENAMED = {
    "plain": lambda key: key,
    "peft": lambda key: f"base_model.model.{key}",
    "adapter": lambda key: key.replace(".weight", ".default.weight"),
    "peft with adapter": lambda key: f"base_model.model.{key.replace('.weight', '.default.weight')}",
    "fsdp": lambda key: f"model._fsdp_wrapped_module.{key}",
    "comfy": lambda key: f"diffusion_model.{down_up(key)}",
    "kohya": lambda key: down_up(flattened(key)),
    "diffusers": as_diffusers,
    "old diffusers": lambda key: down_up(as_diffusers(key), {"lora_A": "lora.down", "lora_B": "lora.up"}),
}


def expected_of(base, lora, scale):
    state = load_file(base / "diffusion_pytorch_model.safetensors")
    for key, b in lora.items():
        if ".lora_B" in key:
            name = key.split(".lora_")[0]
            state[f"{name}.weight"] += scale * (b @ lora[f"{name}.lora_A.weight"])
    return state


@pytest.mark.parametrize("spelling", RENAMED)
def test_every_spelling_is_merged(spelling, base, tmp_path):
    lora = lora_tensors(SHAPES, RANK)
    assert len(lora) == 2 * 4 * 10
    path = tmp_path / "lora.safetensors"
    save_file({RENAMED[spelling](k): v for k, v in lora.items()}, path)
    found = network(base, path, "model.lora_alpha=3").state_dict()
    expected = expected_of(base, lora, 3 / RANK)
    assert all((found[k] - expected[k]).abs().max() <= 1e-6 for k in expected)


@pytest.mark.parametrize(
    ("said", "tensor", "overrides", "scale"),
    [
        ({}, None, [], 1.0),
        ({}, None, ["model.lora_alpha=64"], 64 / RANK),
        ({"lora_alpha": 3, "r": RANK}, None, ["model.lora_alpha=64"], 0.5),
        ({"lora_alpha": 3, "use_rslora": True}, None, [], 3 / RANK**0.5),
        ({"lora_alpha": 3, "alpha_pattern": {"blocks.2.ffn.0": 12}}, None, [], 2.0),
        ({"lora_alpha": 3}, 12.0, [], 2.0),
    ],
    ids=["none", "family", "config", "rslora", "pattern", "tensor"],
)
def test_where_the_scale_comes_from(said, tensor, overrides, scale, base, tmp_path):
    module = "blocks.2.ffn.0"
    lora = {k: v for k, v in lora_tensors(SHAPES, RANK).items() if k.startswith(module)}
    save_file(
        lora | ({f"{module}.alpha": torch.tensor(tensor)} if tensor else {}), tmp_path / "adapter_model.safetensors"
    )
    if said:
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    found = network(base, tmp_path, *overrides).state_dict()
    expected = expected_of(base, lora, scale)
    assert all((found[k] - expected[k]).abs().max() <= 1e-5 for k in expected)
    assert sum(not torch.equal(found[k], v) for k, v in random_tensors(SHAPES).items()) == 1


def test_several_with_strengths(base, tmp_path):
    lora = lora_tensors(SHAPES, RANK)
    save_file(lora, tmp_path / "lora.safetensors")
    path = tmp_path / "lora.safetensors"
    found = network(base, f"[{{path: {path}, scale: 0.5}}, {path}]").state_dict()
    expected = expected_of(base, lora, 1.5)
    assert all((found[k] - expected[k]).abs().max() <= 1e-5 for k in expected)


def test_a_block_merges_and_reads_its_own_layers(base, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(lora_tensors(SHAPES, RANK), path)
    model = config_of(
        "model=wan21_t2v_1_3b", f"model.checkpoint={base}", f"model.lora={path}", "model.dtype=float32"
    ).model
    checkpoint = Checkpoint(model, CPU)
    file = checkpoint.loras.adapters[0].file
    headers = file.bytes_read
    part = build_network(model, CPU, range(2, 3), checkpoint).state_dict()
    assert 4 * (file.bytes_read - headers) == sum(v.nbytes for v in lora_tensors(SHAPES, RANK).values())
    whole = network(base, path).state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in part.items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"blocks.9.ffn.0.lora_A.weight": torch.ones(RANK, 48)},
            "1 keys that fit no weight of this model: blocks.9.ffn.0",
        ),
        (
            {"blocks.0.ffn.0.lora_magnitude_vector": torch.ones(80)},
            "fit no weight of this model: blocks.0.ffn.0.lora_mag",
        ),
        ({"blocks.0.ffn.0.lora_A.weight": None}, "has blocks.0.ffn.0.lora_B.weight without its other half"),
        (
            {"blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 40)},
            "blocks.0.ffn.0.lora_A.weight must have shape [6, 48] for blocks.0.ffn.0.weight [80, 48], found [6, 40]",
        ),
    ],
    ids=["layer", "dora", "half", "shape"],
)
def test_what_does_not_fit_is_named(change, line, base, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({k: v for k, v in (lora_tensors(SHAPES, RANK) | change).items() if v is not None}, path)
    with pytest.raises(UserError) as error:
        network(base, path, layers=range(3, 4))
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ("/nowhere/l.safetensors", "model.lora=/nowhere/l.safetensors: no such file"),
        ("{file: x}", "must be a path, or"),
        ("{path: x, strength: 2}", "model.lora: strength: is no part of a LoRA"),
        ("{path: x, scale: much}", "scale=much: must be a number"),
    ],
)
def test_what_is_no_lora(lora, line, base):
    with pytest.raises(UserError) as error:
        network(base, lora)
    assert line in str(error.value)


def test_live_avatars_lora(tmp_path):
    """Every linear it adapts at 40 layers, injectors too, scaled by half; here in small."""
    config = s2v_config(**(SMALL | {"num_layers": 40, "audio_dim": 12}))
    shapes = s2v_shapes(config)
    tensors, lora = random_tensors(shapes), lora_tensors(shapes, 4, "base_model.model.{}.lora_{}.default.weight")
    assert len(lora) == 896
    folder, path = write_folder(tmp_path / "s2v", config, tensors), tmp_path / "liveavatar.safetensors"
    save_file(lora, path)
    overrides = [f"model.checkpoint={folder}", f"model.lora={path}", "model.dtype=float32", "model.lora_alpha=2"]
    found = build_network(config_of("model=live_avatar_14b", *overrides).model, CPU).state_dict()
    changed = {name for name, value in tensors.items() if name in found and not torch.equal(found[name], value)}
    assert len(changed) == 448
    for name in ("audio_injector.injector.7.o.weight", "blocks.39.ffn.2.weight"):
        a, b = (lora[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.default.weight"] for x in "AB")
        assert (found[name] - tensors[name] - 0.5 * b @ a).abs().max() <= 1e-6
    assert config_of("model=live_avatar_14b").model.lora_alpha == 64
