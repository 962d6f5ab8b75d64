"""`python -m launch.inspect` says what a file is and what it takes; it reads no weights and loads nothing."""

import pytest
import torch
from safetensors.torch import save_file

from conf import published
from launch import inspect
from tests.checkpoints import (
    SMALL,
    lora_tensors,
    random_tensors,
    s2v_config,
    s2v_shapes,
    t2v_config,
    t2v_shapes,
    vae_tensors,
    write_folder,
)

CONFIG = t2v_config(**SMALL)
SHAPES = t2v_shapes(CONFIG)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "wan", CONFIG, random_tensors(SHAPES, torch.bfloat16), shards=2, vae=4)


@pytest.fixture
def said(capsys):
    def run(*argv) -> str:
        code = inspect.main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return " ".join(captured.out.split())

    return run


@pytest.fixture
def refused(capsys):
    def run(*argv) -> str:
        code = inspect.main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert code == 2 and captured.err.count("\n") == 1, captured.err
        return captured.err

    return run


def test_a_plan_is_found_for_this_machine(folder, said):
    text = said(folder, "plan=auto", "device=cpu")
    assert "plan: plan=" in text and "Fits cluster=here." in text


@pytest.mark.parametrize(
    "wanted", ["plan.devices=[7]", "plan=timestep plan.devices=[0]", "plan=layers plan.workers=99"]
)
def test_a_plan_that_cannot_be_is_refused(folder, refused, wanted):
    line = refused(folder, "cluster=cpu2", *wanted.split())
    assert line.startswith(f"error: {wanted.split()[-1]}: ")


def test_a_folder_under_a_plan(folder, said):
    text = said(folder, "plan=layers", "plan.workers=3")
    assert "Wan2.1 text-to-video" in text
    assert "4 layers, width 48, feed-forward 80, 4 heads, text 24 x 8" in text
    assert "unknown keys none missing keys none" in text
    assert f"vae {folder}/Wan2.1_VAE.pth" in text and "text encoder not in the folder" in text
    parameters = sum(torch.Size(s).numel() for s in SHAPES.values())
    assert f"keys {len(SHAPES)} parameters bfloat16 {parameters / 1000:.0f} K ({parameters * 2 / 1000:.0f} kB)" in text
    assert "worker 0 encode, steps 0-3 of layers 0-1" in text and "worker 2 decode" in text


def test_whether_it_fits_a_cluster(folder, said, tmp_path):
    assert "Fits cluster=h100x5." in said(folder, "cluster=h100x5")
    small = tmp_path / "small.yaml"
    small.write_text(
        "name: small\nkinds: {tiny: {memory_bytes: 1.0e+6, flops: 1.0e+9}}\ndevices: [{kind: tiny, count: 2}]\n"
    )
    text = said(folder, f"cluster={small}", "plan=layers", "plan.workers=2")
    assert "Does not fit cluster=small" in text and "too much" in text


def test_a_file_without_a_config_and_keys_that_do_not_fit(tmp_path, said):
    tensors = random_tensors(SHAPES)
    del tensors["blocks.3.norm3.bias"]
    torch.save({"generator_ema": {f"model.{k}": v for k, v in (tensors | {"extra.weight": torch.ones(2)}).items()}},
               tmp_path / "student.pt")  # fmt: skip
    text = said(tmp_path / "student.pt", "model.network.heads=4", "model.network.text_tokens=8")
    assert "4 layers, width 48, feed-forward 80, 4 heads (not told by shapes: assumed)" in text
    assert "unknown keys 1: model.extra.weight missing keys 1: blocks.3.norm3.bias" in text


def test_loras(folder, tmp_path, said):
    path = tmp_path / "lora.safetensors"
    save_file(lora_tensors(SHAPES, 4, "base_model.model.{}.lora_{}.default.weight"), path)
    assert "family LoRA" in (text := said(path)) and "adapts 40 weights, rank 4" in text
    text = said(folder, f"model.lora={path}", "model.lora_alpha=2")
    assert "lora lora.safetensors 40 weights, rank 4, scale 0.5" in text


def test_parts(tmp_path, said):
    torch.save(vae_tensors(4), tmp_path / "vae.pth")
    assert "Wan2.1 VAE" in (text := said(tmp_path / "vae.pth")) and "width 4 halves encoder and decoder" in text
    save_file(
        {"token_embedding.weight": torch.ones(4, 2), "blocks.0.attn.q.weight": torch.ones(2, 2)},
        tmp_path / "t5.safetensors",
    )
    assert "UMT5 text encoder" in said(tmp_path / "t5.safetensors")
    assert "pocket avatar" in said("assets/weights/pocket_avatar.safetensors")


def test_speech_to_video_is_told_from_text_to_video(tmp_path):
    config = s2v_config(**SMALL, audio_dim=8, audio_inject_layers=[0, 2])
    write_folder(tmp_path, config, random_tensors(s2v_shapes(config)))
    contents = inspect.Contents(str(tmp_path))
    assert contents.kind.models == ("live_avatar_14b",)


def test_terms_that_a_folder_states(folder, said):
    assert published.licence(folder) is None
    (folder / "LICENSE.txt").write_text("\n   Apache License\n  Version 2.0\n")
    assert published.licence(folder / "config.json") == "Apache License (LICENSE.txt)"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: some-community\ntags:\n- a\n---\n# Model\n")
    assert "licence some-community (README.md), Apache License (LICENSE.txt)" in said(folder)
    (folder / "README.md").write_text("---\nlicense:\n- mit\n---\n")
    assert "licence mit (README.md), Apache" in said(folder / "Wan2.1_VAE.pth")


def test_loras_of_differences(folder, tmp_path, said):
    tensors = lora_tensors(SHAPES, 4) | {"blocks.0.diff_m": torch.ones(1, 6, 48), "img_emb.proj.diff_b": torch.ones(3)}
    save_file(tensors, path := tmp_path / "lora.safetensors")
    assert "adapts 40 weights, rank 4 whole differences 2" in said(path)
    text = said(folder, f"model.lora={path}")
    assert "40 weights, rank 4, scale 1.0, 1 whole differences, 1 keys for parts that the model does not have" in text


def test_what_is_not_recognised(tmp_path, refused):
    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    assert "is of no family known here (1 keys: weight)" in refused(tmp_path / "x.safetensors")
    assert "no such file or folder" in refused(f"{tmp_path}/nowhere")
    assert "takes one PATH" in refused("cluster=h100x5")
