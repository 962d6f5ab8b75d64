"""Pictures as rows of CLIP's vision tower (arXiv 2103.00020), as transformers runs it, from either published layout.

The published image-to-video models read what the last block but one gives of ViT-H/14: a row for the picture as a whole
and one for each of its 16 x 16 patches, 1280 wide. The original file is of a whole CLIP with an XLM-RoBERTa beside the
tower, under names of its own, and says its sizes by its shapes alone; a transformers folder has a `config.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import devices
from conf.errors import UserError
from stages.encode.files import loaded, of_library, settings_beside, told_by_shapes, transformers_of
from stages.weight_file import Entry, WeightFile
from stages.weights import outline

SETTING = "model.clip.checkpoint"
LAYER = r"transformer\.(\d+)\."
KEYS = (
    (r"cls_embedding", "embeddings.class_embedding"),
    (r"pos_embedding", "embeddings.position_embedding.weight"),
    (r"patch_embedding\.", "embeddings.patch_embedding."),
    (r"pre_norm\.", "pre_layrnorm."),
    (r"post_norm\.", "post_layernorm."),
    (LAYER + r"norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (LAYER + r"attn\.to_qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (LAYER + r"attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (LAYER + r"mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (LAYER + r"mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
)
"""Beginnings of names in the original file, without `visual.`, as transformers' tower has them."""
TOWER = re.compile(r"(visual|vision_model)\.")
BESIDE = re.compile(
    r"(textual|text_model)\..*|(text|visual)_projection\.weight|visual\.head|log(it)?_scale|.*position_ids"
)
"""What else a file may hold: the text's half, what joins the two, and a table that is computed."""
BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")

PUBLISHED = {(257, 1280): 611_088_640}
"""Parameters that are read of the published tower (ViT-H/14), by rows of a picture and their width."""
HEAD = 80
"""Width of a head of ViT-H, which no shape tells."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] that CLIP was trained with, by channel."""


def tower_name(key: str) -> str:
    """A name in a file as transformers' tower has it; what is no part of it is left as it is."""
    if BESIDE.fullmatch(key):
        return key
    key = TOWER.sub("", key, count=1) if TOWER.match(key) else key
    for pattern, replacement in KEYS:
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", replacement, key)
    return key


def open_weights(path: str | Path) -> WeightFile:
    """The tower's weights in a file or folder, by transformers' names of it: queries, keys and values apart, tables
    without dimensions of one.

    Raises:
        UserError: as of `WeightFile`.
    """
    file = WeightFile(path, SETTING, tower_name)
    found: dict[str, Entry] = {}
    for name, entry in file.entries.items():
        if not BESIDE.fullmatch(name):
            found |= dict(_apart(name, entry))
    file.entries = found
    return file


def _apart(name: str, entry: Entry) -> Iterator[tuple[str, Entry]]:
    """A tensor of a file as the tower holds it."""
    if ".qkv." in name and entry.shape and entry.shape[0] % 3 == 0:
        rows = entry.shape[0] // 3
        shape, step = torch.Size((rows, *entry.shape[1:])), rows * entry.stride[0] * entry.dtype.itemsize
        for i, part in enumerate("qkv"):
            yield name.replace(".qkv.", f".{part}_proj."), replace(entry, offset=entry.offset + i * step, shape=shape)
        return
    while name.startswith("embeddings.") and len(entry.shape) in (2, 3) and entry.shape[0] == 1:
        entry = replace(entry, shape=entry.shape[1:], stride=entry.stride[1:])
    yield name, entry


def _blocks(file: WeightFile) -> int:
    """How many blocks a tower has."""
    return 1 + max((int(found[1]) for name in file.entries if (found := BLOCK.match(name))), default=-1)


def parameter_count(path: str | Path) -> int:
    """Parameters that are read of a file, without reading them: all but those of the last block."""
    file = open_weights(path)
    last = f"encoder.layers.{_blocks(file) - 1}."
    return sum(entry.shape.numel() for name, entry in file.entries.items() if not name.startswith(last))


class ClipEncoder(nn.Module):
    """A picture's rows.

    Args:
        path: the original file, or a transformers folder.
        rows, dim: rows of a picture and their width, as the network reads them.
        dtype, device: of weights and arithmetic.

    Raises:
        UserError: transformers is not installed; files are missing, broken or of another model.
    """

    def __init__(
        self,
        path: str | Path,
        rows: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        file = open_weights(path)
        sizes = _sizes(file, Path(path))
        given = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1, sizes["hidden_size"]
        if given != (rows, dim):
            raise UserError(
                file.name,
                f"gives {given[0]} rows of width {given[1]} of a picture, the network takes {rows} of {dim}",
                "give the model's own",
            )
        self.side, self.tower = sizes["image_size"], _filled(file, sizes, dtype, device)

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        """Rows [1, n, dim], on the CPU, of an RGB picture [3, H, W] in [-1, 1], which is squeezed into a square."""
        weight = self.tower.pre_layrnorm.weight
        here = devices.of(weight.device).upload(image.float()[None])
        square = F.interpolate(here, (self.side, self.side), mode="bicubic", align_corners=False)
        mean, deviation = (square.new_tensor(values).view(-1, 1, 1) for values in (MEAN, DEVIATION))
        return self.tower(((square / 2 + 0.5 - mean) / deviation).to(weight.dtype)).last_hidden_state.cpu()


def _filled(file: WeightFile, sizes: dict, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """transformers' tower of these sizes, without its last block."""
    vision = transformers_of(SETTING, "its rows")

    def make(blocks: int) -> nn.Module:
        made = vision.CLIPVisionModel(vision.CLIPVisionConfig(**sizes | {"num_hidden_layers": blocks}))
        return getattr(made, "vision_model", made)

    with of_library(file.name, "is said to be no CLIP vision tower"), outline():
        whole = {name: value.shape for name, value in make(_blocks(file)).state_dict().items()}
    tower = loaded(lambda: make(_blocks(file) - 1), file, dtype, device, whole)
    # A table that is in no file; held beside the weights it is none of them.
    ids = torch.arange(tower.embeddings.num_positions, device=device)[None]
    del tower.embeddings.position_ids
    tower.embeddings.position_ids = ids
    return tower


def _sizes(file: WeightFile, path: Path) -> dict:
    """Settings of `CLIPVisionConfig`: those that the shapes tell, and what is said beside them."""
    with told_by_shapes(file, "CLIP vision tower"):
        dim, _, patch, _ = file.entries["embeddings.patch_embedding.weight"].shape
        positions = file.entries["embeddings.position_embedding.weight"].shape[0]
        ffn = file.entries["encoder.layers.0.mlp.fc1.weight"].shape[0]
    place, told = settings_beside(path, SETTING)
    told = told["vision_config"] if isinstance(told.get("vision_config"), dict) else told
    heads = told.get("num_attention_heads", max(1, dim // HEAD))
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise UserError(f"{SETTING}: {place}", f"says {heads} heads for a width of {dim}", "download it again")
    return {
        "hidden_size": dim,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": patch * math.isqrt(max(0, positions - 1)),
        "hidden_act": told.get("hidden_act", "gelu"),
        "layer_norm_eps": told.get("layer_norm_eps", 1e-5),
    }
