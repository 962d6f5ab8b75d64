"""Checkpoint names: what savers put before them, and diffusers' spelling, translated to the published original.

Also what a file of the shared transformer is told by, and the sizes that its shapes tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch

HEAD_DIM = 128
"""Of every published model: widths of heads leave no trace in shapes."""
TRANSFORMER = (r"patch_embedding\.weight", r"blocks\.0\.self_attn\.q\.weight", r"head\.head\.weight")
"""Patterns of names that every file of the transformer has."""

# Of wrapping modules (FSDP, activation checkpoints, torch.compile, DDP, PEFT), and of programs that keep several
# networks in one file.
_PREFIXES = re.compile(r"^((base_model\.model|model|module|diffusion_model|transformer|generator|generator_ema)\.)+")
_WRAPPERS = re.compile(r"(^|(?<=\.))(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")

# (diffusers pattern, original name); all are applied, in this order.
_DIFFUSERS = [
    (r"condition_embedder\.time_embedder\.linear_([12])\.", lambda m: f"time_embedding.{2 * int(m[1]) - 2}."),
    (r"condition_embedder\.text_embedder\.linear_([12])\.", lambda m: f"text_embedding.{2 * int(m[1]) - 2}."),
    (r"condition_embedder\.time_proj\.", "time_projection.1."),
    (r"(blocks\.\d+\.)attn1\.", r"\1self_attn."),
    (r"(blocks\.\d+\.)attn2\.", r"\1cross_attn."),
    (r"(blocks\.\d+\.)norm2\.", r"\1norm3."),
    (r"(blocks\.\d+\.)ffn\.net\.0\.proj\.", r"\1ffn.0."),
    (r"(blocks\.\d+\.)ffn\.net\.2\.", r"\1ffn.2."),
    (r"(blocks\.\d+\.)scale_shift_table$", r"\1modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", r".o."),
]


def original_name(name: str) -> str:
    """A parameter's name as the original checkpoints spell it; original names pass unchanged."""
    name = _PREFIXES.sub("", _WRAPPERS.sub("", name))
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def original_within(keys: Iterable[str], wrapper: str) -> bool:
    """Whether all names are the original ones with the name of a wrapping module before them, whatever else wraps."""
    plain = [_WRAPPERS.sub("", key) for key in keys]
    return all(key.startswith(wrapper) and key.removeprefix(wrapper) == original_name(key) for key in plain)


LAYERS = {
    "patch_embedding.weight": 5,
    "head.head.weight": 2,
    "blocks.0.ffn.0.weight": 2,
    "time_embedding.0.weight": 2,
}
"""Names whose shapes tell sizes, and how many dimensions they have."""
TEXT = "text_embedding.0.weight"
READ = LAYERS | {TEXT: 2}
"""The same where text is read."""


def tells(shapes: Mapping[str, torch.Size], read: Mapping[str, int] = READ) -> bool:
    """Whether a file has all the shapes that tell a network's sizes."""
    return all(len(shapes.get(name, ())) == n and min(shapes[name]) > 0 for name, n in read.items())


def channels(shapes: Mapping[str, torch.Size]) -> tuple[int, int]:
    """Of the latents that enter and leave."""
    _, inside, *patch = shapes["patch_embedding.weight"]
    return inside, shapes["head.head.weight"][0] // math.prod(patch)


def sizes(shapes: Mapping[str, torch.Size]) -> dict[str, object]:
    """Fields of `LayerSizes` that a network's shapes tell, by our names, and the width of text where it is read; heads
    only where `HEAD_DIM` fits."""
    dim, _, *patch = shapes["patch_embedding.weight"]
    inside, outside = channels(shapes)
    found = {
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "layers": 1 + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))),
        "patch": patch,
        "in_channels": inside,
        "out_channels": outside,
        "freq_dim": shapes["time_embedding.0.weight"][1],
    } | ({"text_dim": shapes[TEXT][1]} if TEXT in shapes else {})
    return found | ({"heads": dim // HEAD_DIM} if dim % HEAD_DIM == 0 else {})
