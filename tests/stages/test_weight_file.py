"""Every published layout gives the same weights, read by key, by rows and no further; and every misfit is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from stages import weight_file
from stages.build import (
    Checkpoint,
    build_decoder,
    build_encoder,
    build_input_encoder,
    build_network,
)
from stages.inputs import inputs_of, made_of
from stages.weight_file import WeightFile
from tests.checkpoints import (
    SMALL,
    random_tensors,
    s2v_config,
    s2v_shapes,
    t2v_config,
    t2v_shapes,
    vae_tensors,
    write_folder,
    write_shards,
)
from tests.helpers import config_of

CPU = torch.device("cpu")
CONFIG = t2v_config(**SMALL)


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(t2v_shapes(CONFIG))


def model_of(path, *overrides):
    return config_of("model=wan21_t2v_1_3b", f"model.checkpoint={path}", "model.dtype=float32", *overrides).model


SIZES = [
    "model.network.dim=48", "model.network.ffn_dim=80", "model.network.layers=4", "model.network.heads=4",
    "model.network.freq_dim=32", "model.network.text_dim=24", "model.network.text_tokens=8",
]  # fmt: skip
"""What config.json says, for weights that come without one."""


def test_the_tables_are_as_long_and_as_large_as_the_published_models():
    t2v, s2v = t2v_shapes(t2v_config()), s2v_shapes(s2v_config())
    assert (len(t2v), len(s2v)) == (1095, 1260)
    assert round(sum(torch.Size(s).numel() for s in s2v.values()) / 1e9, 3) == 16.296


def original(folder, tensors):
    return write_folder(folder, CONFIG, tensors), []


def shards(folder, tensors):
    return write_folder(folder, CONFIG, tensors, shards=3), []


def shards_without_an_index(folder, tensors):
    path = write_folder(folder, CONFIG, tensors, shards=3)
    (path / "diffusion_pytorch_model.safetensors.index.json").unlink()
    return path, []


def comfy(folder, tensors):
    save_file({f"model.diffusion_model.{k}": v for k, v in tensors.items()}, folder / "wan.safetensors")
    return folder / "wan.safetensors", SIZES


def student(folder, tensors):
    """As distillation writes it: the averaged generator beside the other one, its modules wrapped by FSDP."""
    wrapped = {f"model._fsdp_wrapped_module.{k}".replace("attn.", "attn._orig_mod."): v for k, v in tensors.items()}
    other = {k: v + 1 for k, v in wrapped.items()}
    torch.save({"generator": other, "generator_ema": wrapped, "step": 600}, folder / "student.pt")
    return folder / "student.pt", SIZES


def parameters(folder, tensors):
    """Parameters rather than tensors, two of which lie transposed in their storage."""
    turned = {k: v.t().contiguous().t() if v.ndim == 2 and "ffn" in k else v for k, v in tensors.items()}
    torch.save({"state_dict": {k: torch.nn.Parameter(v) for k, v in turned.items()}}, folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, []


def diffusers(folder, tensors):
    """A pipeline's folder, its transformer saved by diffusers itself, in several files."""
    from diffusers import WanTransformer3DModel

    from stages.dit.keys import original_name

    model = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, ffn_dim=80, num_layers=4, freq_dim=32, text_dim=24,
        rope_max_seq_len=32,
    )  # fmt: skip
    model.load_state_dict({k: tensors[original_name(k)] for k in model.state_dict()})
    model.save_pretrained(folder / "transformer", max_shard_size="300KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    (folder / "model_index.json").write_text("{}")
    return folder, ["model.network.text_tokens=8"]


@pytest.mark.parametrize(
    "layout",
    [original, shards, shards_without_an_index, comfy, student, parameters, diffusers],
    ids=lambda f: f.__name__,
)
def test_every_layout_gives_the_same_weights(layout, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_file, "PIECE", 1 << 10)
    # What is no part of a layout is left alone.
    (tmp_path / "notes.txt").write_text("hello")
    torch.save({"other": torch.zeros(3)}, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    path, overrides = layout(tmp_path, tensors)
    model = model_of(path, *overrides)
    found = build_network(model, CPU).state_dict()
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in found)


def test_half_precision_on_disk_or_in_the_model(tensors, tmp_path):
    half = {k: v.bfloat16() for k, v in tensors.items()}
    path = write_folder(tmp_path, CONFIG, half)
    network = build_network(model_of(path), CPU)
    assert all(torch.equal(v, half[k].float()) for k, v in network.state_dict().items())
    network = build_network(model_of(path, "model.dtype=bfloat16"), CPU)
    assert all(v.dtype == torch.bfloat16 and torch.equal(v, half[k]) for k, v in network.state_dict().items())


def test_a_block_reads_its_own_bytes_and_no_others(tensors, tmp_path):
    model = model_of(write_folder(tmp_path, CONFIG, tensors, shards=3))
    checkpoint = Checkpoint(model, CPU)
    headers = checkpoint.file.bytes_read
    assert 0 < headers < 4 * 30_000
    network = build_network(model, CPU, range(1, 3), checkpoint)
    own = network.state_dict()
    assert {k.split(".")[1] for k in own if k.startswith("blocks.")} == {"1", "2"}
    assert checkpoint.file.bytes_read - headers == sum(v.nbytes for v in own.values())
    assert all(torch.equal(v, tensors[k]) for k, v in own.items())


def test_fused_weights_are_loaded_in_place(tensors, tmp_path):
    network = build_network(model_of(write_folder(tmp_path, CONFIG, tensors)), CPU)
    own = network.blocks["1"].self_attn
    before = own.q.weight.data_ptr()
    network.fuse()
    assert own.q.weight.data_ptr() == before
    assert own.v.weight.data_ptr() == before + 2 * own.q.weight.nbytes
    assert torch.equal(own.v.weight, tensors["blocks.1.self_attn.v.weight"])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_rows_are_read_alone(suffix, tmp_path):
    values = {
        "w": torch.randn(40, 6),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 4),
    }
    path = tmp_path / f"x.{suffix}"
    save_file(values, path) if suffix == "safetensors" else torch.save(values, path)
    file = WeightFile(path)
    before = file.bytes_read
    assert torch.equal(file.read("w", slice(10, 30)), values["w"][10:30])
    assert file.bytes_read - before == 20 * 6 * 4
    assert all(torch.equal(file.read(name), value) for name, value in values.items())
    assert file.bytes_read - before == 20 * 6 * 4 + sum(v.nbytes for v in values.values())


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_vae_of_a_folder(layout, tensors, tmp_path):
    """Found in the model's folder under either name, its width read from the file; each half reads its own bytes."""
    vae = vae_tensors(4)
    write_folder(tmp_path, CONFIG, tensors, vae=4)
    if layout == "diffusers":
        from diffusers import AutoencoderKLWan

        from stages.codec.wan.keys import original_key

        (tmp_path / "Wan2.1_VAE.pth").unlink()
        theirs = AutoencoderKLWan(base_dim=4)
        theirs.load_state_dict({k: vae[original_key(k)] for k in theirs.state_dict()})
        theirs.save_pretrained(tmp_path / "vae")
    model = model_of(tmp_path)
    for half in (build_encoder(model, CPU), build_decoder(model, CPU)):
        state = half.state_dict()
        assert len(state) > 60
        assert all(torch.equal(v, vae[k]) for k, v in state.items())


def without(name):
    return lambda folder, tensors: write_shards(folder, {k: v for k, v in tensors.items() if k != name})


def changed(**tensors_by_name):
    more = {k.replace("__", "."): v for k, v in tensors_by_name.items()}
    return lambda folder, tensors: write_shards(folder, tensors | more)


def config_with(**said):
    return lambda folder, tensors: (folder / "config.json").write_text(json.dumps(CONFIG | said))


def index_of(content):
    def write(folder, tensors):
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))

    return write


def deep_config(folder, tensors):
    (folder / "config.json").write_text("[" * 100_000)


def missing_shard(folder, tensors):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    write_shards(folder, tensors, shards=3)
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def two_files(folder, tensors):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tensors, folder / name)


def old_format(folder, tensors):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tensors, folder / "model.pt", _use_new_zipfile_serialization=False)


MISFITS = {
    "keys: blocks.2.norm3.bias; is it": without("blocks.2.norm3.bias"),
    "blocks.3.ffn.0.weight must have shape [80, 48], found [81, 48]": changed(
        blocks__3__ffn__0__weight=torch.ones(81, 48)
    ),
    "has 1 keys that this model does not have: extra.weight": changed(extra__weight=torch.ones(3)),
    "is Wan2.1 image-to-video: a picture's latents": changed(img_emb__proj__0__weight=torch.ones(3)),
    "head.modulation and module.head.modulation are both head.modulation": changed(
        module__head__modulation=torch.ones(1, 2, 48)
    ),
    "diffusion_pytorch_model-00002-of-00003.safetensors, which": missing_shard,
    "index.json: is no JSON object; download": index_of([]),
    "index.json: weight_map=null must be an object; ": index_of({"metadata": {}}),
    "index.json: weight_map.a=5 must be text; ": index_of({"weight_map": {"a": 5}}),
    "names, is not there; download it": index_of({"weight_map": {"a": ""}}),
    "config.json: is no JSON (maximum recursion depth": deep_config,
    'model.network.dim="48": must be a whole number; ': config_with(dim="48"),
    'model.network.patch[0]="1": must be a whole number; ': config_with(patch_size=["1", 2, 2]),
    'config.json: num_attention_heads="4": must be a whole number; ': lambda folder, tensors: (
        folder / "config.json"
    ).write_text('{"num_attention_heads": "4", "attention_head_dim": "12"}'),
    "several weight files (a.safetensors, b.safetensors)": two_files,
    "torch's format of before 1.6": old_format,
    "config.json: is of Wan image-to-video (36 channels in, 16 out): a pic": config_with(model_type="i2v", in_dim=36),
    "must divide dim=48": config_with(num_heads=7),
    "model_type=s2v: is not supported, only t2v": config_with(**s2v_config(**SMALL)),
    "blocks.0.cross_attn.k.bias must have shape [64], found [48]": config_with(dim=64),
}


@pytest.mark.parametrize("line", MISFITS)
def test_misfits_are_named_before_anything_is_read(line, tensors, tmp_path):
    """A worker sees what is wrong in others' layers, too."""
    write_folder(tmp_path, CONFIG, tensors)
    MISFITS[line](tmp_path, tensors)
    with pytest.raises(UserError) as error:
        build_network(model_of(tmp_path), CPU, range(1, 3))
    assert line in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(kind, value, tensors, tmp_path, monkeypatch):
    """By the worker that reads them, which names the key as the file has it."""
    monkeypatch.setattr(weight_file, "PIECE", 1 << 10)
    key = "blocks.2.ffn.2.bias"
    bad = tensors | {key: tensors[key].clone()}
    bad[key][-1] = value
    saved = {f"model.{name}": v.to(kind) for name, v in bad.items()}
    model = model_of(write_folder(tmp_path, CONFIG, saved))
    build_network(model, CPU, range(0, 2))
    with pytest.raises(UserError, match=rf"model\.checkpoint=.*: model\.{key} holds values that are not finite"):
        build_network(model, CPU, range(2, 4))


def test_weights_beyond_the_range_of_the_models_type_are_refused(tensors, tmp_path):
    model = model_of(
        write_folder(tmp_path, CONFIG, tensors | {"head.head.bias": torch.full((64,), 1e6)}), "model.dtype=float16"
    )
    with pytest.raises(UserError, match=r"head\.head\.bias holds values that are not finite .*model\.dtype=bfloat16"):
        build_network(model, CPU)


def test_fp8_without_scales_is_weights_like_others(tensors, tmp_path):
    small = {k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}
    found = build_network(model_of(write_folder(tmp_path, CONFIG, small)), CPU).state_dict()
    assert all(torch.equal(v, small[k].float()) for k, v in found.items())


def test_tables_that_savers_add_are_ignored(tensors, tmp_path):
    write_folder(tmp_path, CONFIG, tensors | {"freqs": torch.ones(4), "rope.freqs_cos": torch.ones(4)})
    build_network(model_of(tmp_path), CPU, range(0, 1))


def test_weights_without_a_vae_are_no_random_pictures(tensors, tmp_path):
    with pytest.raises(UserError, match=r"model.codec.checkpoint=null: .* brings no VAE"):
        build_decoder(model_of(write_folder(tmp_path, CONFIG, tensors)), CPU)


S2V = s2v_config(**(SMALL | {"num_layers": 40, "audio_dim": 12}))


def s2v_model(path):
    small_ear = ["model.network.audio.wav2vec.layers=25", "model.dtype=float32"]
    return config_of("model=live_avatar_14b", f"model.checkpoint={path}", *small_ear).model


def test_every_key_of_speech_to_video_is_loaded_by_one_part(tmp_path):
    """1260 keys at 40 layers: the network's, and the audio encoder's, which lives in another stage."""
    tensors = random_tensors(s2v_shapes(S2V))
    assert len(tensors) == 1260
    model = s2v_model(write_folder(tmp_path, S2V, tensors, shards=4))
    assert model.network.audio.layers == [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]
    heard, found = made_of(inputs_of(model), "audio"), build_network(model, CPU).state_dict()
    prefix = heard.encoder.prefix
    found |= {prefix + name: value for name, value in build_input_encoder(model, heard).state_dict().items()}
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_blocks_of_speech_to_video_load_their_own_injectors(tmp_path):
    tensors = random_tensors(s2v_shapes(S2V))
    model = s2v_model(write_folder(tmp_path, S2V, tensors, shards=4))
    for layers, injectors in ((range(10, 20), {"3", "4"}), (range(34, 40), {"10", "11"})):
        checkpoint = Checkpoint(model, CPU)
        headers = checkpoint.file.bytes_read
        own = build_network(model, CPU, layers, checkpoint).state_dict()
        assert {k.split(".")[2] for k in own if k.startswith("audio_injector.injector.")} == injectors
        assert checkpoint.file.bytes_read - headers == sum(v.nbytes for v in own.values())
