"""The device and the types that a configuration names."""

from __future__ import annotations

import torch

from conf.errors import UserError


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` to `torch.bfloat16`."""
    return getattr(torch, name)


def choose_device(kind: str) -> torch.device:
    """The device `device=auto|cpu|cuda` means here; an emulated one is the processor, which has little to do."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda", "no CUDA device is visible", "use device=cpu or device=auto")
    return torch.device("cuda" if kind in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
