"""The pocket models' codec: a half of the sizes that its file names, and that half filled with weights.

A file is safetensors with keys `encoder.*`, `decoder.*` and `latents.<data>.mean|std`, and its metadata has the sizes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from conf.errors import UserError, nearest
from conf.schema import CodecConfig, ModelConfig
from stages.codec.small.files import SETTING
from stages.codec.small.network import SmallConfig, SmallDecoder, SmallEncoder
from stages.file_kinds import require
from stages.weight_file import WeightFile
from stages.weights import initialise, load

HALVES = {"encoder": SmallEncoder, "decoder": SmallDecoder}


def make(codec: CodecConfig, half: str) -> SmallEncoder | SmallDecoder:
    """A half of the sizes that its file names, or of the usual ones where there is no file."""
    return HALVES[half](open_file(codec.checkpoint)[1] if codec.checkpoint else None)


def build(
    model: ModelConfig, codec: CodecConfig, half: str, device: torch.device, dtype: torch.dtype
) -> SmallEncoder | SmallDecoder:
    """A half with its weights, in float32 on the CPU: the constructor sets the statistics, which no seed draws.

    Raises:
        UserError: there is no such file, or it does not fit.
    """
    if not codec.checkpoint:
        module = make(codec, half)
        initialise(module, model.init_seed, f"codec.{half}.")
        return module
    return load_half(codec.checkpoint, half, codec.statistics)


def describe(config: SmallConfig) -> str:
    """The configuration as the text that a weight file carries in its metadata."""
    return json.dumps(asdict(config))


def open_file(path: str | Path) -> tuple[WeightFile, SmallConfig]:
    """A weight file, and the configuration in its metadata.

    Raises:
        UserError: it is no weight file, or of something else.
    """
    file = WeightFile(path, SETTING)
    require(file, SETTING)
    try:
        fields = json.loads(file.metadata["config"])
        config = SmallConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        rule = "is no file of the pocket codec: its metadata does not say its sizes"
        raise UserError(file.name, rule, "give assets/weights/codec.safetensors, or one like it") from error
    return file, config


def load_half(path: str | Path, half: str, data: str | None = None) -> SmallEncoder | SmallDecoder:
    """The `encoder` or the `decoder` of a weight file, in float32 and ready to run; only its own tensors are read.

    Args:
        path: a safetensors file with keys `encoder.*`, `decoder.*` and `latents.<data>.mean|std`.
        half: `encoder` or `decoder`.
        data: whose latent statistics to normalise with (`avatar` or `world`); None for those of both together.

    Raises:
        UserError: there is no such file, or it does not fit.
    """
    file, config = open_file(path)
    module = HALVES[half](config)
    for name in ("mean", "std") if data is not None else ():
        if (key := f"latents.{data}.{name}") not in file.entries:
            known = sorted({key.split(".")[1] for key in file.entries if key.startswith("latents.")})
            raise UserError(f"model.codec.statistics={data}", f"{path} has none of these", nearest(data, known))
        file.entries[f"{half}.{name}"] = file.entries[key]
    load(module, file, f"{half}.")
    return module.eval().requires_grad_(False)
