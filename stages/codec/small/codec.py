"""The pocket models' codec: a half of the sizes that its file names, and that half filled with weights.

A file is safetensors with keys `encoder.*`, `decoder.*` and `latents.<data>.mean|std`, and its metadata has the sizes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open

from conf.errors import UserError
from conf.paths import is_file
from conf.schema import CodecConfig, ModelConfig
from stages.codec.small.network import SmallConfig, SmallDecoder, SmallEncoder
from stages.weights import initialise

HALVES = {"encoder": SmallEncoder, "decoder": SmallDecoder}


def make(codec: CodecConfig, half: str) -> SmallEncoder | SmallDecoder:
    """A half of the sizes that its file names, or of the usual ones where there is no file."""
    return HALVES[half](read_config(codec.checkpoint) if codec.checkpoint else None)


def build(
    model: ModelConfig, codec: CodecConfig, half: str, device: torch.device, dtype: torch.dtype
) -> SmallEncoder | SmallDecoder:
    """A half with its weights, in float32 on the CPU: the constructor sets the statistics, which no seed draws.

    Raises:
        UserError: there is no such file.
    """
    if not codec.checkpoint:
        module = make(codec, half)
        initialise(module, model.init_seed, f"codec.{half}.")
        return module
    if not is_file(codec.checkpoint):
        raise UserError(f"model.codec.checkpoint={codec.checkpoint}", "no such file", "check the path")
    return load_half(codec.checkpoint, half, codec.statistics)


def describe(config: SmallConfig) -> str:
    """The configuration as the text that a weight file carries in its metadata."""
    return json.dumps(asdict(config))


def read_config(path: str | Path) -> SmallConfig:
    """The configuration in a weight file's metadata."""
    with safe_open(str(path), framework="pt") as file:
        fields = json.loads((file.metadata() or {})["config"])
    return SmallConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def load_half(path: str | Path, half: str, data: str | None = None) -> SmallEncoder | SmallDecoder:
    """The `encoder` or the `decoder` of a weight file, in float32 and ready to run; only its own tensors are read.

    Args:
        path: a safetensors file with keys `encoder.*`, `decoder.*` and `latents.<data>.mean|std`.
        half: `encoder` or `decoder`.
        data: whose latent statistics to normalise with (`avatar` or `world`); None for those of both together.
    """
    module = HALVES[half](read_config(path))
    with safe_open(str(path), framework="pt") as file:
        own = [key for key in file.keys() if key.startswith(f"{half}.")]  # noqa: SIM118 (the file is no dictionary)
        state = {key.removeprefix(f"{half}."): file.get_tensor(key).float() for key in own}
        if data is not None:
            state |= {name: file.get_tensor(f"latents.{data}.{name}").float() for name in ("mean", "std")}
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
