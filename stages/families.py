"""What a weight file is, told by its names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from stages.codec import wan_keys
from stages.denoise.keys import original_name
from stages.lora import SPELLINGS

Shapes = Mapping[str, torch.Size]
HEAD_DIM = 128
"""Of every published model of the family: widths of heads leave no trace in shapes."""


@dataclass(frozen=True)
class Family:
    """One kind of weight file.

    Attributes:
        name: in words.
        has: patterns that some of its names match, once translated.
        rename: from names in the file.
        models: in `conf/model`, the one to take where no width fits first; empty: it is a part of a model.
    """

    name: str
    has: tuple[str, ...]
    rename: Callable[[str], str] = original_name
    models: tuple[str, ...] = ()


TRANSFORMER = (r"patch_embedding\.weight", r"blocks\.0\.self_attn\.q\.weight", r"head\.head\.weight")
POCKET = (*TRANSFORMER, r"text_encoder\.table\.weight")
FAMILIES = (
    Family("LoRA", (SPELLINGS[0][0].pattern,), lambda key: key),
    Family("LoRA", (SPELLINGS[2][0].pattern,), lambda key: key),
    Family("pocket avatar", (*POCKET, r"audio_encoder\..*", r"trainable_cond_mask\.weight"), models=("pocket_avatar",)),
    Family("pocket world", (*POCKET, r"action_modulation\..*"), models=("pocket_world",)),
    Family(
        "Wan2.2 speech-to-video",
        (*TRANSFORMER, r"casual_audio_encoder\.weights", r"frame_packer\.proj\.weight"),
        models=("live_avatar_14b",),
    ),
    Family("Wan2.1 text-to-video", TRANSFORMER, models=("wan21_t2v_1_3b", "wan21_t2v_14b")),
    Family("Wan2.1 VAE", (r"(encoder\.conv1|decoder\.head\.2)\.weight", r"conv[12]\.weight"), wan_keys.original_name),
    Family("pocket codec", (r"decoder\.layers\.0\.weight", r"encoder\.layers\.0\.weight"), lambda key: key),
    Family("UMT5 text encoder", (r"token_embedding\.weight", r"blocks\.0\.attn\.q\.weight"), lambda key: key),
    Family("UMT5 text encoder", (r"shared\.weight", r"encoder\.block\.0\.layer\.0\..*"), lambda key: key),
    Family("wav2vec2 audio encoder", (r"(wav2vec2\.)?feature_extractor\..*", r"(wav2vec2\.)?encoder\..*"), lambda k: k),
)
"""The first whose patterns are all found is it."""


def family_of(keys: Shapes) -> Family | None:
    """The family of a file with these names; None: none that is known here."""
    for family in FAMILIES:
        names = [family.rename(key) for key in keys]
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in family.has):
            return family
    return None


def network_sizes(shapes: Shapes) -> dict[str, object]:
    """Fields of `NetworkConfig` that a transformer's shapes tell, by our names; heads only where `HEAD_DIM` fits."""
    dim, channels, *patch = shapes["patch_embedding.weight"]
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    sizes = {
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "layers": layers,
        "patch": patch,
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // math.prod(patch),
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "text_dim": shapes["text_embedding.0.weight"][1],
    }
    return sizes | ({"heads": dim // HEAD_DIM} if dim % HEAD_DIM == 0 else {})
