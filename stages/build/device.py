"""The device and the types that a configuration names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from conf.errors import UserError

HIDDEN = ("", "-1")
"""What CUDA_VISIBLE_DEVICES says where GPUs are hidden on purpose."""


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` to `torch.bfloat16`."""
    return getattr(torch, name)


def choose_device(kind: str) -> torch.device:
    """The device `device=auto|cpu|cuda` means here; an emulated one is the processor, which has little to do.

    Raises:
        UserError: `cuda` is asked for, and torch sees none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        rule, remedy = idle_gpu() or ("no CUDA device is visible", "use device=cpu or device=auto")
        raise UserError("device=cuda", rule, remedy)
    return torch.device("cuda" if kind in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def idle_gpu(
    root: Path = Path("/"), environ: Mapping[str, str] = os.environ, cuda: str | None = torch.version.cuda
) -> tuple[str, str] | None:
    """Why torch cannot compute on the NVIDIA GPU that this machine shows, and the remedy; None: it can, or there is no
    sign of one, or it is hidden on purpose.

    Args:
        root: of the file system.
        environ: where PATH and CUDA_VISIBLE_DEVICES are.
        cuda: the version that torch was built for; None: it was built without.
    """
    if torch.cuda.is_available() or environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return None
    signs = (*sorted((root / "dev").glob("nvidia[0-9]*")), *(root / "proc/driver/nvidia").glob("version"))
    sign = next(map(str, signs), None) or shutil.which("nvidia-smi", path=environ.get("PATH", ""))
    if sign is None:
        return None
    if cuda is None:
        rule = f"there is a GPU ({sign}), and torch {torch.__version__} was built without CUDA"
        return (
            rule,
            "install one with CUDA (in a checkout: make install TORCH=cu130 TORCH_INDEX=URL), or use device=cpu",
        )
    rule = f"there is a GPU ({sign}), and torch for CUDA {cuda} cannot use it"
    return rule, f"see nvidia-smi, install a driver for CUDA {cuda} or a torch for the driver's, or use device=cpu"
