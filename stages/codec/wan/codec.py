"""The Wan2.1 VAE: a half of the width that its file names, and that half filled with weights."""

from __future__ import annotations

import torch

from conf.errors import UserError
from conf.schema import CodecConfig, ModelConfig
from stages.codec.wan import keys
from stages.codec.wan.files import SETTING
from stages.codec.wan.network import WanDecoder, WanEncoder
from stages.file_kinds import require
from stages.weight_file import WeightFile
from stages.weights import check, empty, initialise, load, outline

HALVES = {"encoder": WanEncoder, "decoder": WanDecoder}


def make(codec: CodecConfig, half: str) -> WanEncoder | WanDecoder:
    """A half of the width that its file has, without one as configured."""
    return HALVES[half](base=_width(codec))


def build(
    model: ModelConfig, codec: CodecConfig, half: str, device: torch.device, dtype: torch.dtype
) -> WanEncoder | WanDecoder:
    """A half with its weights, in its place and type.

    Raises:
        UserError: a published model is given and brings no VAE, or the VAE's file does not fit.
    """
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no VAE",
            "give Wan2.1_VAE.pth, or the vae folder of a diffusers model (as model.codec.vae beside a decoder alone)",
        )
    width = _width(codec)
    module = empty(lambda: HALVES[half](base=width), device, dtype)
    if codec.checkpoint is None:
        initialise(module, model.init_seed, f"codec.{half}.")
        return module
    with outline():
        names = {k: v.shape for kind in HALVES.values() for k, v in kind(base=width).state_dict().items()}
    file = _file(codec)
    check(file, names)
    load(module, file)
    return module


def _width(codec: CodecConfig) -> int:
    """Channels at full resolution: as the file has them, without one as configured."""
    found = keys.width({name: e.shape for name, e in _file(codec).entries.items()}) if codec.checkpoint else None
    return found or codec.width


def _file(codec: CodecConfig) -> WeightFile:
    file = WeightFile(codec.checkpoint, SETTING, keys.original_name)
    require(file, SETTING)
    return file
