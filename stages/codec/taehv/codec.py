"""The decoder, filled from a published file; its latents are another codec's, whose encoder it goes with."""

from __future__ import annotations

import torch

from conf.errors import UserError
from conf.schema import CodecConfig, ModelConfig
from stages.codec.taehv.declared import CODEC
from stages.codec.taehv.network import TaehvDecoder
from stages.weight_file import WeightFile
from stages.weights import empty, extremes, initialise, require_finite


def make(codec: CodecConfig, half: str) -> TaehvDecoder:
    """The decoder, which is of one size."""
    return TaehvDecoder()


def build(model: ModelConfig, codec: CodecConfig, half: str, device: torch.device, dtype: torch.dtype) -> TaehvDecoder:
    """The decoder with its weights, in channels-last memory.

    Raises:
        UserError: a published model is given and no file of this decoder, or the file does not fit.
    """
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null",
            "a taehv decoder needs its weights",
            f"give taew2_1.pth, or codec.kind={CODEC.encoder}",
        )
    module = empty(TaehvDecoder, device, dtype)
    if codec.checkpoint is None:
        initialise(module, model.init_seed, "codec.decoder.")
    else:
        load(module.requires_grad_(False), WeightFile(codec.checkpoint, "model.codec.checkpoint"))
    return module


def load(module: TaehvDecoder, file: WeightFile) -> None:
    """Fill a decoder from a published file.

    Files of models that double the rate at every level have more rows where ours has a rate of one: the last count.

    Raises:
        UserError: a key is missing, its shape does not fit, or its values are not finite.
    """
    seen = []
    for name, target in module.state_dict().items():
        if name not in file.entries:
            raise UserError(file.name, f"lacks {name}", "is it a TAEHV decoder of Wan2.1 (taew2_1)?")
        found = file.entries[name].shape
        count = found[0] if found else 0
        rows = slice(count - target.shape[0], count)
        if found[1:] != target.shape[1:] or rows.start < 0 or (rows.start and not name.endswith("7.conv.weight")):
            raise UserError(
                file.name, f"{name} must have shape {list(target.shape)}, found {list(found)}",
                "is it a TAEHV decoder of Wan2.1 (taew2_1)?",
            )  # fmt: skip
        seen.append((file.entries[name].key, extremes(target.copy_(file.read(name, rows)))))
    require_finite(file.name, seen)
