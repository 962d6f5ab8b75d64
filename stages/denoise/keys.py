"""Checkpoint names: what savers put before them, and diffusers' spelling, translated to the published original."""

from __future__ import annotations

import re

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
    """A parameter's name as Wan's own checkpoints spell it; original names pass unchanged."""
    name = _PREFIXES.sub("", _WRAPPERS.sub("", name))
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name
