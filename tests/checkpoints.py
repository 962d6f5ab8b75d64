"""Random checkpoints in the published layouts, at any width: what tests and benchmarks load.

Names and shapes are written down here, not taken from the network, so that loading them says something.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

T2V_14B = {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "num_heads": 40}
SMALL = {"dim": 48, "ffn_dim": 80, "num_layers": 4, "num_heads": 4, "freq_dim": 32, "text_dim": 24, "text_len": 8}
"""Every size another one, so that no two can be mistaken for each other."""


def t2v_config(**sizes: Any) -> dict[str, Any]:
    """A `config.json` of Wan2.1 text-to-video, as published, with some sizes replaced."""
    published = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "eps": 1e-06, "freq_dim": 256}
    return published | {"in_dim": 16, "model_type": "t2v", "out_dim": 16, "text_len": 512} | T2V_14B | sizes


def s2v_config(**sizes: Any) -> dict[str, Any]:
    """A `config.json` of Wan2.2-S2V-14B, as published, with some sizes replaced."""
    published = {
        "_class_name": "WanModel_S2V",
        "_diffusers_version": "0.34.0",
        "adain_mode": "attn_norm",
        "add_last_motion": True,
        "audio_dim": 1024,
        "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
        "cond_dim": 16,
        "enable_adain": True,
        "enable_framepack": True,
        "enable_motioner": False,
        "framepack_drop_mode": "padd",
        "motion_frames": 73,
        "num_audio_token": 4,
        "trainable_token_pos_emb": False,
        "zero_timestep": True,
    }
    return t2v_config(**published) | {"model_type": "s2v"} | sizes


def _linear(name: str, out: int, inputs: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, inputs, *kernel), f"{name}.bias": (out,)}


def _attention(name: str, dim: int) -> Shapes:
    found: Shapes = {f"{name}.norm_{x}.weight": (dim,) for x in "qk"}
    for x in "qkvo":
        found |= _linear(f"{name}.{x}", dim, dim)
    return found


def t2v_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every key of a Wan transformer under its original name: 15 and 27 per layer."""
    dim, ffn, patch = config["dim"], config["ffn_dim"], tuple(config.get("patch_size", (1, 2, 2)))
    found = _linear("patch_embedding", dim, config["in_dim"], *patch)
    found |= _linear("text_embedding.0", dim, config.get("text_dim", 4096)) | _linear("text_embedding.2", dim, dim)
    found |= _linear("time_embedding.0", dim, config["freq_dim"]) | _linear("time_embedding.2", dim, dim)
    found |= _linear("time_projection.1", 6 * dim, dim)
    for i in range(config["num_layers"]):
        block = f"blocks.{i}"
        found |= {f"{block}.modulation": (1, 6, dim)}
        found |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        found |= _attention(f"{block}.self_attn", dim) | _attention(f"{block}.cross_attn", dim)
        found |= _linear(f"{block}.ffn.0", ffn, dim) | _linear(f"{block}.ffn.2", dim, ffn)
    found |= _linear("head.head", config["out_dim"] * prod(patch), dim)
    return found | {"head.modulation": (1, 2, dim)}


def s2v_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every key of Wan2.2-S2V: those of the transformer, the audio encoder, its injectors, pose and motion."""
    dim, heard, channels = config["dim"], config["audio_dim"], config["in_dim"]
    found = t2v_shapes(config) | {"trainable_cond_mask.weight": (3, dim)}
    found |= _linear("cond_encoder", dim, config["cond_dim"], 1, 2, 2)
    encoder = "casual_audio_encoder.encoder"
    found |= {"casual_audio_encoder.weights": (1, 25, 1, 1), f"{encoder}.padding_tokens": (1, 1, 1, dim)}
    found |= _linear(f"{encoder}.conv1_local.conv", dim, heard, 3)
    found |= _linear(f"{encoder}.conv1_global.conv", dim // 4, heard, 3)
    found |= _linear(f"{encoder}.conv2.conv", dim // 2, dim // 4, 3)
    found |= _linear(f"{encoder}.conv3.conv", dim, dim // 2, 3)
    found |= _linear(f"{encoder}.final_linear", dim, dim)
    for j in range(len(config["audio_inject_layers"])):
        found |= _attention(f"audio_injector.injector.{j}", dim)
        found |= _linear(f"audio_injector.injector_adain_layers.{j}.linear", 2 * dim, dim)
    for name, factor in (("proj", 1), ("proj_2x", 2), ("proj_4x", 4)):
        found |= _linear(f"frame_packer.{name}", dim, channels, factor, 2 * factor, 2 * factor)
    return found


def lingbot_config(**sizes: Any) -> dict[str, Any]:
    """A `config.json` of LingBot-World-Fast: the fields of Wan's image-to-video network, with some sizes replaced."""
    return t2v_config(model_type="i2v", in_dim=36) | sizes


def lingbot_shapes(config: Mapping[str, Any], channels: int = 6) -> Shapes:
    """Every key of LingBot-World: those of the transformer, and its camera's; `channels` of a pixel's ray."""
    dim = config["dim"]
    found = t2v_shapes(config) | _linear("patch_embedding_wancamctrl", dim, channels * 8 * 8 * 2 * 2)
    found |= _linear("c2ws_hidden_states_layer1", dim, dim) | _linear("c2ws_hidden_states_layer2", dim, dim)
    for i in range(config["num_layers"]):
        for part in ("injector_layer1", "injector_layer2", "scale_layer", "shift_layer"):
            found |= _linear(f"blocks.{i}.cam_{part}", dim, dim)
    return found


VARIANTS = {"universal": (4, 2), "drive": (2, 2), "run": (7, 0)}
"""Matrix-Game 2's keys and axes of a mouse."""


def matrix_config(variant: str = "universal", actions: Mapping[str, Any] | None = None, **sizes: Any) -> dict[str, Any]:
    """A `config.json` of Matrix-Game 2, as published, with some sizes replaced, those of its actions too."""
    keys, axes = VARIANTS[variant]
    acting = {
        "blocks": list(range(15)), "enable_keyboard": True, "enable_mouse": axes > 0, "heads_num": 16,
        "hidden_size": 128, "img_hidden_size": 1536, "keyboard_dim_in": keys, "keyboard_hidden_dim": 1024,
        "mouse_dim_in": 2, "mouse_hidden_dim": 1024, "mouse_qk_dim_list": [8, 28, 28], "patch_size": [1, 2, 2],
        "qk_norm": True, "qkv_bias": False, "rope_dim_list": [8, 28, 28], "rope_theta": 256,
        "vae_time_compression_ratio": 4, "windows_size": 3,
    }  # fmt: skip
    published = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30, "in_dim": 36, "model_type": "i2v"}
    published |= {"local_attn_size": 4 if variant == "drive" else 6, "sink_size": 0, "inject_sample_info": False}
    return t2v_config(**published) | sizes | {"action_config": acting | (actions or {})}


def matrix_shapes(config: Mapping[str, Any], image_dim: int = 1280) -> Shapes:
    """Every key of Matrix-Game 2: the transformer's without text, a picture's rows, and 19 (9 without a mouse) for
    every layer that reads actions."""
    dim, a = config["dim"], config["action_config"]
    found = {name: shape for name, shape in t2v_shapes(config).items() if not name.startswith("text_embedding")}
    for i, ends in enumerate(((image_dim,), (image_dim, image_dim), None, (dim, image_dim), (dim,))):
        if ends:
            found |= {f"img_emb.proj.{i}.weight": ends, f"img_emb.proj.{i}.bias": ends[:1]}
    width, m, embedded = 12 * a["hidden_size"], a["mouse_hidden_dim"], a["hidden_size"]
    head, k = a["keyboard_hidden_dim"] // a["heads_num"], a["keyboard_hidden_dim"]
    for i in a["blocks"]:
        part = f"blocks.{i}.action_model"
        found |= _linear(f"{part}.keyboard_embed.0", embedded, a["keyboard_dim_in"])
        found |= _linear(f"{part}.keyboard_embed.2", embedded, embedded)
        shapes = {"mouse_attn_q": (k, dim), "keyboard_attn_kv": (2 * k, width), "proj_keyboard": (dim, k)}
        shapes |= {"key_attn_q_norm": (head,), "key_attn_k_norm": (head,)}
        if a["enable_mouse"]:
            found |= _linear(f"{part}.mouse_mlp.0", m, dim + 12 * a["mouse_dim_in"])
            found |= _linear(f"{part}.mouse_mlp.2", m, m)
            found |= {f"{part}.mouse_mlp.3.{end}": (m,) for end in ("weight", "bias")}
            shapes |= {"t_qkv": (3 * m, m), "proj_mouse": (dim, m)}
            shapes |= {"img_attn_q_norm": (m // a["heads_num"],), "img_attn_k_norm": (m // a["heads_num"],)}
        found |= {f"{part}.{name}.weight": shape for name, shape in shapes.items()}
    return found


def random_tensors(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Values for every shape, each a function of its name, of a size that keeps activations near one."""
    found = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if len(shape) > 1 and not name.endswith("modulation"):
            values *= prod(shape[1:]) ** -0.5
        elif "norm" in name and not name.endswith("bias"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        found[name] = values.to(dtype)
    return found


def vae_tensors(base: int) -> dict[str, Tensor]:
    """Weights of a Wan2.1 VAE, both halves, under their original names."""
    from stages.codec.wan.network import WanDecoder, WanEncoder

    with torch.device("meta"):
        halves = WanEncoder(base=base), WanDecoder(base=base)
    return random_tensors({k: tuple(v.shape) for half in halves for k, v in half.state_dict().items()})


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> None:
    """`diffusion_pytorch_model.safetensors`, or that many shards of it with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, names = "diffusion_pytorch_model", list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / f"{stem}.safetensors")
        return
    where = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        # Layers are spread over all shards, as they are where shards are filled by size.
        own = {name: tensors[name] for name in names[shard::shards]}
        save_file(own, folder / file)
        where |= dict.fromkeys(own, file)
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shards: int = 1, vae: int | None = None
) -> Path:
    """A model's folder in the original layout; `vae`: the width of a VAE to go with it."""
    write_shards(folder, tensors, shards)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    if vae:
        torch.save(vae_tensors(vae), folder / "Wan2.1_VAE.pth")
    return folder


def lora_tensors(shapes: Mapping[str, tuple[int, ...]], rank: int, spelling: str = "{}.lora_{}.weight") -> dict:
    """Factors for every linear that Live Avatar's LoRA adapts: q, k, v, o of all attentions, and the feed-forward.

    Args:
        spelling: of a key, given the module and A or B.
    """
    targets = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    modules = [n.removesuffix(".weight") for n, s in shapes.items() if n.endswith(".weight") and len(s) == 2]
    found: Shapes = {}
    for module in modules:
        if module.endswith(tuple(f".{t}" for t in targets)) and ("blocks." in module or "injector." in module):
            out, inputs = shapes[f"{module}.weight"]
            found[spelling.format(module, "A")] = (rank, inputs)
            found[spelling.format(module, "B")] = (out, rank)
    return random_tensors(found)


WORDS = ("a", "cat", "dog", "walks", "in", "the", "snow", "night", "red", "house")
T5 = {"vocab": 132, "dim": 24, "attention": 20, "ffn": 28, "heads": 4, "layers": 3, "buckets": 8}
"""Sizes of a small UMT5: every one another; its width is `SMALL`'s text width."""


def umt5_shapes(sizes: Mapping[str, int] = T5) -> Shapes:
    """Every key of Wan's UMT5 file under its original name: 3 and 10 per layer less one."""
    dim, inner, ffn = sizes["dim"], sizes["attention"], sizes["ffn"]
    found: Shapes = {"token_embedding.weight": (sizes["vocab"], dim), "norm.weight": (dim,)}
    for i in range(sizes["layers"]):
        block = f"blocks.{i}"
        found |= {f"{block}.norm1.weight": (dim,), f"{block}.norm2.weight": (dim,)}
        found |= {f"{block}.attn.{x}.weight": (inner, dim) for x in "qkv"} | {f"{block}.attn.o.weight": (dim, inner)}
        found |= {f"{block}.ffn.{x}.weight": (ffn, dim) for x in ("gate.0", "fc1")}
        found |= {f"{block}.ffn.fc2.weight": (dim, ffn)}
        found |= {f"{block}.pos_embedding.embedding.weight": (sizes["buckets"], sizes["heads"])}
    return found


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of a few words and all letters, as transformers writes it: what `google/umt5-xxl` is in a folder."""
    from transformers import T5Tokenizer

    pieces = [(p, 0.0) for p in ("<pad>", "</s>", "<unk>")] + [(f"▁{w}", -2.0) for w in WORDS] + [("▁", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz&<>"]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return folder


def sentencepiece(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """A sentencepiece model of (piece, score, type), as its own trainer writes it: protobuf messages in one another."""

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes((number << 3 | 2, len(content))) + content

    def number(field: int, value: int) -> bytes:
        return bytes((field << 3, value))

    each = (field(1, p.encode()) + b"\x15" + struct.pack("<f", score) + number(3, kind) for p, score, kind in pieces)
    # Of the trainer: unigrams (type 1), and the numbers of <unk>, <s>, </s> and <pad>.
    trainer = number(3, 1) + b"".join(bytes((0xC0 + 8 * i, 2, n)) for i, n in enumerate((2, 9, 1, 0)))
    return b"".join(field(1, piece) for piece in each) + field(2, trainer)


def write_text_encoder(folder: Path, sizes: Mapping[str, int] = T5) -> dict[str, Tensor]:
    """UMT5 and its tokenizer in a model's folder, in the original layout; returns the weights."""
    tensors = random_tensors(umt5_shapes(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(folder / "google/umt5-xxl")
    return tensors


CLIP = {"dim": 160, "ffn": 72, "layers": 3, "patch": 7, "side": 14}
"""Sizes of a small CLIP vision tower, with heads as wide as the published one's."""


def clip_shapes(sizes: Mapping[str, int] = CLIP) -> Shapes:
    """Keys of the original CLIP file: the vision tower's, 9 and 12 per block, and some of what is beside it."""
    dim, ffn, patch = sizes["dim"], sizes["ffn"], sizes["patch"]
    rows = (sizes["side"] // patch) ** 2 + 1
    found: Shapes = {
        "visual.cls_embedding": (1, 1, dim), "visual.pos_embedding": (1, rows, dim),
        "visual.patch_embedding.weight": (dim, 3, patch, patch), "visual.head": (dim, 12),
    }  # fmt: skip
    norms = ["visual.pre_norm", "visual.post_norm"]
    for i in range(sizes["layers"]):
        block = f"visual.transformer.{i}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        found |= _linear(f"{block}.attn.to_qkv", 3 * dim, dim) | _linear(f"{block}.attn.proj", dim, dim)
        found |= _linear(f"{block}.mlp.0", ffn, dim) | _linear(f"{block}.mlp.2", dim, ffn)
    found |= {f"{norm}.{end}": (dim,) for norm in norms for end in ("weight", "bias")}
    return found | {"log_scale": (), "textual.token_embedding.weight": (9, 6), "textual.head.0.weight": (9, 6)}


def clip_tensors(sizes: Mapping[str, int] = CLIP) -> dict[str, Tensor]:
    """Weights of a small CLIP under their original names."""
    return random_tensors(clip_shapes(sizes))


def write_image_encoder(folder: Path, sizes: Mapping[str, int] = CLIP) -> dict[str, Tensor]:
    """CLIP in a model's folder, in the original layout; returns the weights."""
    tensors = clip_tensors(sizes)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    return tensors
