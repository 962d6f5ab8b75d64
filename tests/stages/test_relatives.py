"""Models that share the published transformer and are not run: by name, by whatever tells them, everywhere alike."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from conf.schema import CodecConfig
from launch import inspect
from stages.build import build_decoder, build_network
from stages.file_kinds import kinds
from stages.models.wan.relatives import RELATIVES, require_none
from tests.checkpoints import (
    SMALL,
    lora_tensors,
    matrix_config,
    random_tensors,
    t2v_config,
    t2v_shapes,
    vae_tensors,
    write_folder,
)  # fmt: skip
from tests.helpers import config_of

CPU = torch.device("cpu")
CONFIG = t2v_config(**SMALL)
DIFFUSERS = {
    "_class_name": "WanTransformer3DModel", "attention_head_dim": 12, "num_attention_heads": 4, "ffn_dim": 80,
    "num_layers": 4, "freq_dim": 32, "text_dim": 24, "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads", "cross_attn_norm": True, "eps": 1e-6, "image_dim": None,
    "added_kv_proj_dim": None, "pos_embed_seq_len": None, "rope_max_seq_len": 1024,
}  # fmt: skip

TENSORS = random_tensors(t2v_shapes(CONFIG))
SIZES = [
    "model.network.dim=48", "model.network.ffn_dim=80", "model.network.layers=4", "model.network.heads=4",
    "model.network.freq_dim=32", "model.network.text_dim=24", "model.network.text_tokens=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def model_of():
    """model_of(path): a text-to-video model with that checkpoint."""
    plain = config_of("model=wan21_t2v_1_3b", "model.dtype=float32", *SIZES).model
    return lambda path: replace(plain, checkpoint=str(path))


SAID = {
    "Wan2.1 image-to-video": [DIFFUSERS | {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}],
    "Wan image-to-video": [CONFIG | {"model_type": "i2v", "in_dim": 36}, DIFFUSERS | {"in_channels": 36}],
    "Wan2.2-TI2V-5B": [
        CONFIG | {"model_type": "ti2v", "in_dim": 48, "out_dim": 48},
        DIFFUSERS | {"in_channels": 48, "out_channels": 48},
    ],
    "Wan VACE": [
        CONFIG | {"_class_name": "VaceWanModel", "model_type": "vace", "vace_layers": [0, 5], "vace_in_dim": 96},
        DIFFUSERS | {"_class_name": "WanVACETransformer3DModel", "vace_layers": [0, 5], "vace_in_channels": 96},
    ],
    "Wan2.1 first-last-frame-to-video": [
        CONFIG | {"model_type": "flf2v", "in_dim": 36},
        DIFFUSERS | {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
    ],
    "Wan2.2-Animate": [DIFFUSERS | {"_class_name": "WanAnimateTransformer3DModel", "in_channels": 36}],
    "Wan Fun Camera": [CONFIG | {"model_type": "i2v", "in_dim": 32, "add_control_adapter": True}],
    "Wan Fun Control": [CONFIG | {"model_type": "i2v", "in_dim": 48, "add_ref_conv": True}],
}

SAID["Matrix-Game"] = [matrix_config(**SMALL), CONFIG | {"action_config": {"blocks": [0]}}]
"""Of which some sizes are SkyReels-V2's, and the type is that of image-to-video."""

KEYS = {
    "Matrix-Game": ["blocks.0.action_model.keyboard_embed.0.weight"],
    "Wan2.1 image-to-video": ["img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight",
                              "blocks.0.cross_attn.k_img.weight", "blocks.0.attn2.add_k_proj.weight"],
    "Wan VACE": ["vace_blocks.0.before_proj.weight", "vace_patch_embedding.weight"],
    "Wan2.1 first-last-frame-to-video": ["img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"],
    "Wan2.2-Animate": ["pose_patch_embedding.weight", "face_adapter.fuser_blocks.0.linear1_kv.weight"],
    "Wan Fun Camera": ["control_adapter.conv.weight"],
    "Wan Fun Control": ["ref_conv.weight"],
    "SkyReels-V2": ["fps_embedding.weight"],
    "a talking head on Wan image-to-video": ["blocks.0.audio_cross_attn.q_linear.weight", "audio_proj.proj1.weight"],
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_config_tells_it(name):
    for said in SAID[name]:
        with pytest.raises(UserError) as error:
            require_none(said)
        assert f"config.json: is of {name}" in str(error.value)


def test_a_config_of_text_to_video_passes():
    require_none(CONFIG)
    require_none(DIFFUSERS)
    require_none({})


@pytest.mark.parametrize("name", KEYS)
def test_names_of_weights_tell_it(name, model_of, tmp_path, capsys):
    """In both spellings, and under every prefix; `inspect` and a run say the same."""
    for i, key in enumerate(KEYS[name]):
        tensors = TENSORS | {key: torch.ones(3)}
        prefix = "model.diffusion_model." if i else ""
        save_file({prefix + k: v for k, v in tensors.items()}, path := tmp_path / f"{i}.safetensors")
        with pytest.raises(UserError) as error:
            build_network(model_of(path), CPU)
        rule = str(error.value).removeprefix(f"model.checkpoint={path}: ")
        assert rule.startswith(f"is {name}"), rule
        assert inspect.main([str(path)]) == 2
        assert capsys.readouterr().err == f"error: PATH={path}: {rule}\n"


@pytest.mark.parametrize(
    ("inside", "outside", "name"), [(36, 16, "Wan image-to-video"), (48, 48, "Wan2.2-TI2V-5B")], ids=["i2v", "5b"]
)
@pytest.mark.parametrize("layout", ["original", "diffusers", "file"])
def test_channels_tell_it_in_every_layout(layout, inside, outside, name, model_of, tmp_path, capsys):
    tensors = random_tensors(t2v_shapes(CONFIG | {"in_dim": inside, "out_dim": outside}))
    path = tmp_path
    if layout == "original":
        write_folder(tmp_path, CONFIG | {"in_dim": inside, "out_dim": outside}, tensors)
    elif layout == "diffusers":
        write_folder(tmp_path / "transformer", DIFFUSERS | {"in_channels": inside, "out_channels": outside}, tensors)
    else:
        save_file(tensors, path := tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=rf"model\.checkpoint={path}.*{name}"):
        build_network(model_of(path), CPU)
    assert inspect.main([str(path)]) == 2
    assert f"PATH={path}: is {name}" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")])
def test_two_experts(pair, model_of, tmp_path, capsys):
    for part in pair:
        write_folder(tmp_path / part, CONFIG, TENSORS)
    with pytest.raises(UserError, match=r"two experts.*A14B"):
        model_of(tmp_path)
    assert inspect.main([str(tmp_path)]) == 2
    assert "two experts" in capsys.readouterr().err


def test_other_channels_than_those_that_leave_are_refused(model_of, tmp_path):
    config = CONFIG | {"in_dim": 20}
    write_folder(tmp_path, config, random_tensors(t2v_shapes(config)))
    with pytest.raises(UserError, match=r"model\.network\.in_channels=20: .*out_channels=16"):
        model_of(tmp_path)


def test_what_a_file_is_instead_is_said_where_it_is_given(model_of, tmp_path):
    save_file(lora_tensors(t2v_shapes(CONFIG), 2), lora := tmp_path / "lora.safetensors")
    torch.save(vae_tensors(4), vae := tmp_path / "vae.pth")
    for path, said in ((lora, "is a LoRA; give it as model.lora"), (vae, "give it as model.codec.checkpoint")):
        with pytest.raises(UserError, match=said):
            build_network(model_of(path), CPU)
    model = replace(model_of(lora), codec=CodecConfig("wan", checkpoint=str(lora)))
    with pytest.raises(UserError, match=r"model\.codec\.checkpoint=.*: is a LoRA; give it as model\.lora"):
        build_decoder(model, CPU)


def test_the_vae_of_the_5b_is_refused_by_name(model_of, tmp_path):
    tensors = vae_tensors(4) | {"encoder.downsamples.0.downsamples.0.residual.0.gamma": torch.ones(4)}
    torch.save(tensors, path := tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"model\.codec\.checkpoint=.*: is Wan2\.2 VAE: .*stride of 16"):
        build_decoder(replace(model_of(path), codec=CodecConfig("wan", checkpoint=str(path))), CPU)


def test_every_relative_has_a_sign_and_is_among_the_kinds():
    names = {kind.name for kind in kinds() if kind.refused}
    assert all((one.has or one.said or one.channels) and one.name in names for one in RELATIVES)


def test_shapes_that_no_network_has_are_of_no_known_kind(tmp_path, capsys):
    tensors = TENSORS | {"patch_embedding.weight": torch.ones(3)}
    save_file(tensors, path := tmp_path / "x.safetensors")
    assert inspect.main([str(path)]) == 2
    assert "is of no family known here" in capsys.readouterr().err
