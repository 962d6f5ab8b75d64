"""CLIP's vision tower from both published layouts, against transformers' own loading and forward."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from conf.errors import UserError
from conf.schema import ClipConfig
from launch import inspect
from stages.encode.clip import PUBLISHED, ClipEncoder, parameter_count
from stages.weights import outline
from tests.checkpoints import CLIP, clip_tensors, write_image_encoder

ORIGINAL = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
ROWS = (CLIP["side"] // CLIP["patch"]) ** 2 + 1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The same weights in the original layout and, beside them, in transformers'; with its model."""
    folder = tmp_path_factory.mktemp("clip")
    weights = write_image_encoder(folder)
    config = transformers.CLIPVisionConfig(
        hidden_size=CLIP["dim"], intermediate_size=CLIP["ffn"], num_hidden_layers=CLIP["layers"],
        num_attention_heads=CLIP["dim"] // 80, image_size=CLIP["side"], patch_size=CLIP["patch"], hidden_act="gelu",
    )  # fmt: skip
    model = transformers.CLIPVisionModel(config).eval()
    # Written down a second time, the other way round from the table that is tested.
    made = {
        "embeddings.class_embedding": weights["visual.cls_embedding"][0, 0],
        "embeddings.position_embedding.weight": weights["visual.pos_embedding"][0],
        "embeddings.patch_embedding.weight": weights["visual.patch_embedding.weight"],
    }
    for end in ("weight", "bias"):
        made[f"pre_layrnorm.{end}"] = weights[f"visual.pre_norm.{end}"]
        made[f"post_layernorm.{end}"] = weights[f"visual.post_norm.{end}"]
        for i in range(CLIP["layers"]):
            to, at = f"encoder.layers.{i}", f"visual.transformer.{i}"
            for part, rows in zip("qkv", weights[f"{at}.attn.to_qkv.{end}"].chunk(3), strict=True):
                made[f"{to}.self_attn.{part}_proj.{end}"] = rows
            for theirs, ours in (
                ("self_attn.out_proj", "attn.proj"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
                ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"),
            ):  # fmt: skip
                made[f"{to}.{theirs}.{end}"] = weights[f"{at}.{ours}.{end}"]
    getattr(model, "vision_model", model).load_state_dict(made)
    model.save_pretrained(folder / "image_encoder")
    return folder, transformers.CLIPVisionModel.from_pretrained(folder / "image_encoder").eval()


def image(height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def upstream(model, picture):
    """As the published pipelines do it: squeezed, normalised, and the states before the last block."""
    square = F.interpolate(picture[None], (CLIP["side"],) * 2, mode="bicubic", align_corners=False)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (square.mul(0.5).add(0.5) - mean) / deviation
    return model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


@pytest.mark.parametrize("layout", [ORIGINAL, "image_encoder"])
def test_both_layouts_give_transformers_rows(published, layout):
    folder, model = published
    encoder = ClipEncoder(folder / layout, ROWS, CLIP["dim"])
    rows, expected = encoder(image()), upstream(model, image())
    assert rows.shape == (1, ROWS, CLIP["dim"])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
    assert parameter_count(folder / layout) == sum(p.numel() for p in encoder.parameters())
    assert not list(encoder.buffers())
    other = ClipEncoder(folder / ORIGINAL, ROWS, CLIP["dim"], torch.bfloat16)(image())
    assert other.dtype is torch.bfloat16 and (other - expected).abs().mean() < 0.05


def test_files_are_found_in_a_models_folder(published, tmp_path):
    folder, _ = published
    assert ClipConfig().beside(str(folder)).checkpoint == str(folder / ORIGINAL)
    (tmp_path / "image_encoder").mkdir()
    assert ClipConfig().beside(str(tmp_path)).checkpoint == str(tmp_path / "image_encoder")
    assert ClipConfig(str(folder / "image_encoder")).beside("x").checkpoint == str(folder / "image_encoder")
    assert ClipConfig().beside(None).checkpoint is None


def test_what_does_not_fit_is_refused_in_one_line(published, tmp_path, capsys):
    folder, _ = published
    with pytest.raises(UserError, match=f"gives {ROWS} rows of width 160 of a picture, the network takes 257 of 1280"):
        ClipEncoder(folder / ORIGINAL, 257, 1280)
    weights = clip_tensors()
    broken = {
        "lacks 1 of": {k: v for k, v in weights.items() if k != "visual.transformer.2.attn.proj.bias"},
        "has 1 keys that this model does not have: visual.adapter": weights | {"visual.adapter": torch.zeros(1)},
        "must have shape": weights | {"visual.transformer.1.mlp.2.bias": torch.zeros(3)},
        "is no CLIP vision tower: lacks": {"textual.a": torch.zeros(1), "visual.cls_embedding": torch.zeros(1, 1, 160)},
        "not finite": weights | {"visual.pre_norm.bias": torch.full((160,), torch.nan)},
    }
    for i, (said, tensors) in enumerate(broken.items()):
        save_file(tensors, tmp_path / f"{i}.safetensors")
        with pytest.raises(UserError, match=said) as error:
            ClipEncoder(tmp_path / f"{i}.safetensors", ROWS, CLIP["dim"])
        assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    save_file(load_file(folder / "image_encoder" / "model.safetensors"), tmp_path / "folder" / "model.safetensors")
    config = json.loads((folder / "image_encoder" / "config.json").read_text())
    for said, other in (
        ("says 7 heads for a width of 160", {"num_attention_heads": 7}),
        ("is said to be no CLIP vision tower", {"hidden_act": "loud"}),
    ):
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config | other))
        with pytest.raises(UserError, match=said):
            ClipEncoder(tmp_path / "folder", ROWS, CLIP["dim"])
    assert inspect.main([str(folder / ORIGINAL)]) == 0
    assert "CLIP image encoder" in capsys.readouterr().out


def test_the_published_tower_has_so_many_parameters_but_for_its_last_block():
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14}
    with outline():
        tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes | {"num_hidden_layers": 31}))
    assert PUBLISHED[257, 1280] == sum(p.numel() for p in tower.parameters())
