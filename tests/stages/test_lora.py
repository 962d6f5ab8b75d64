"""A merged LoRA is PEFT's forward, in every spelling, for the weights that are read; what fits nothing is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import UserError
from stages import weight_file
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
    "adapter with a dot": lambda key: key.replace(".weight", ".default_0.default.weight"),
    "adapter with a hyphen": lambda key: f"base_model.model.{key.replace('.weight', '.my-style.weight')}",
    "bare": lambda key: key.removesuffix(".weight"),
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


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ([], "is no JSON object"),
        ({"lora_alpha": "16"}, 'lora_alpha="16" must be a number'),
        ({"alpha_pattern": ["ffn", 8]}, 'alpha_pattern=["ffn", 8] must be an object'),
        ({"alpha_pattern": {"ffn": None}}, "alpha_pattern.ffn=null must be a number"),
        ({"use_rslora": "no"}, 'use_rslora="no" must be true or false'),
        ({"alpha_pattern": {"ffn(": 8}}, "alpha_pattern in its adapter_config.json holds what is no pattern"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_said_beside_it_is_of_its_types(said, line, base, tmp_path):
    save_file(lora_tensors(SHAPES, RANK), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError) as error:
        network(base, tmp_path)
    assert str(error.value).startswith("model.lora") and line in str(error.value)


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
            {"blocks.0.ffn.0.hada_w1_a": torch.ones(80, 2)},
            "has 1 keys that are no part of a LoRA as it is read here: blocks.0.ffn.0.hada_w1_a; give pairs",
        ),
        ({"blocks.0.ffn.0.lora_A.weight": None}, "has blocks.0.ffn.0.lora_B.weight without its other half"),
        ({"blocks.0.norm3.alpha": torch.ones(())}, "has blocks.0.norm3 without its other half"),
        (
            {"blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 40)},
            "blocks.0.ffn.0.lora_A.weight must have shape [6, 48] for blocks.0.ffn.0.weight [80, 48], found [6, 40]",
        ),
        ({"blocks.0.ffn.0.diff": torch.ones(80, 40)}, "blocks.0.ffn.0.diff must have shape [80, 48] for"),
        ({"blocks.0.ffn.0.dora_scale": torch.ones(1, 48)}, "blocks.0.ffn.0.dora_scale must have shape [80] for"),
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(())}, "must have shape [1, 48] for blocks.0.ffn.0.weight"),
        (
            {"blocks.0.ffn.0.lora_A.other.weight": torch.ones(RANK, 48)},
            "holds several adapters: blocks.0.ffn.0.lora_A.other.weight and blocks.0.ffn.0.lora_A.weight",
        ),
        (
            {"blocks.3.ffn.0.lora_B.weight": torch.full((80, RANK), float("nan"))},
            "blocks.3.ffn.0.lora_B.weight holds values that are not finite",
        ),
    ],
    ids=["loha", "half", "alpha", "shape", "difference", "dora", "scalar", "adapters", "nan"],
)
def test_what_does_not_fit_is_named(change, line, base, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({k: v for k, v in (lora_tensors(SHAPES, RANK) | change).items() if v is not None}, path)
    with pytest.raises(UserError) as error:
        network(base, path, layers=range(3, 4))
    assert str(error.value).startswith(f"model.lora={path}: ") and line in str(error.value)


def test_whole_differences_are_added(base, tmp_path):
    """Of weights, biases and modulations, beside pairs and alone, scaled by the strength and by no alpha."""
    pairs = {k: v for k, v in lora_tensors(SHAPES, RANK).items() if k.startswith("blocks.2.ffn.0")}
    names = {
        "blocks.1.self_attn.q.diff": "blocks.1.self_attn.q.weight",
        "blocks.2.ffn.0.diff_b": "blocks.2.ffn.0.bias",
        "blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "blocks.1.norm3.b_norm": "blocks.1.norm3.bias",
        "blocks.3.diff_m": "blocks.3.modulation",
        "head.diff_m": "head.modulation",
        "patch_embedding.diff": "patch_embedding.weight",
    }
    differences = {key: torch.randn(SHAPES[name]) for key, name in names.items()}
    path = tmp_path / "lora.safetensors"
    saved = {f"diffusion_model.{k}": v for k, v in (pairs | differences).items()}
    save_file(saved, path)
    found = network(base, f"{{path: {path}, scale: 0.5}}", "model.lora_alpha=3").state_dict()
    expected = expected_of(base, pairs, 0.5 * 3 / RANK)
    for key, name in names.items():
        expected[name] += 0.5 * differences[key]
    assert all((found[k] - expected[k]).abs().max() <= 1e-5 for k in expected)
    changed = {k for k, v in random_tensors(SHAPES).items() if not torch.equal(v, found[k])}
    assert changed == {*names.values(), "blocks.2.ffn.0.weight"}


def test_differences_under_kohyas_names(base, tmp_path):
    difference = torch.randn(48)
    save_file({"lora_unet_blocks_1_self_attn_q.diff_b": difference}, path := tmp_path / "lora.safetensors")
    found = network(base, path).state_dict()["blocks.1.self_attn.q.bias"]
    assert torch.equal(found, random_tensors(SHAPES)["blocks.1.self_attn.q.bias"] + difference)


@pytest.mark.parametrize("spelling", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight", "dora_scale"])
def test_dora_is_pefts(spelling, base, tmp_path, monkeypatch):
    """PEFT's own merge of one layer with magnitudes that are no norms; rows read a few at a time."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(weight_file, "PIECE", 1 << 10)
    name = "blocks.2.ffn.0"
    layer = torch.nn.Sequential(torch.nn.Linear(48, 80))
    layer[0].weight.data.copy_(random_tensors(SHAPES)[f"{name}.weight"])
    model = get_peft_model(layer, LoraConfig(r=RANK, lora_alpha=4, target_modules=["0"], use_dora=True))
    theirs = model.base_model.model[0]
    lora = {k: v for k, v in lora_tensors(SHAPES, RANK).items() if k.startswith(f"{name}.")}
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(lora[f"{name}.lora_A.weight"])
        theirs.lora_B["default"].weight.copy_(lora[f"{name}.lora_B.weight"])
        magnitude = theirs.lora_magnitude_vector["default"].weight
        magnitude.mul_(1 + 0.3 * torch.rand(80))
    saved = magnitude.detach().clone().view(80, 1) if spelling == "dora_scale" else magnitude.detach().clone()
    save_file(lora | {f"{name}.{spelling}": saved}, path := tmp_path / "lora.safetensors")
    found = network(base, path, "model.lora_alpha=4").state_dict()[f"{name}.weight"]
    half = network(base, f"{{path: {path}, scale: 0.5}}", "model.lora_alpha=4").state_dict()[f"{name}.weight"]
    before = random_tensors(SHAPES)[f"{name}.weight"]
    expected = model.merge_and_unload()[0].weight.detach()
    assert (found - expected).abs().max() <= 1e-5 and (expected - before).abs().max() > 0.1
    assert (half - (before + expected) / 2).abs().max() <= 1e-5


def test_parts_that_the_model_has_not_are_skipped_and_counted_once(base, tmp_path, caplog):
    """An adapter of image-to-video on text-to-video: what fits is merged."""
    lora = lora_tensors(SHAPES, RANK)
    more = {f"blocks.0.cross_attn.k_img.lora_{x}.weight": torch.ones(RANK, RANK) for x in "AB"}
    save_file(lora | more, path := tmp_path / "lora.safetensors")
    found = network(base, path, "model.lora_alpha=3").state_dict()
    network(base, path, layers=range(1, 4))
    expected = expected_of(base, lora, 3 / RANK)
    assert all((found[k] - expected[k]).abs().max() <= 1e-6 for k in expected)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(f"model.lora={path}: 2 of its keys are of parts that this model does not have")


def test_an_adapter_of_another_model_or_of_nothing_is_refused(base, tmp_path):
    save_file({"other.1.lora_A.weight": torch.ones(2, 4)}, path := tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=r"model\.lora=.*: fits no weight of this model \(1 keys: other\.1\.lora_A"):
        network(base, path)
    save_file({}, path)
    with pytest.raises(UserError, match=r"model\.lora=.*: holds no tensors"):
        network(base, path)


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ("/proc/nowhere/l.safetensors", "model.lora=/proc/nowhere/l.safetensors: no such file"),
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
