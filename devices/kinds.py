"""Which devices there are, and which one a configuration means."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from conf.errors import UserError
from devices.accelerator import Accelerator
from devices.base import Device
from devices.processor import Processor

HIDDEN = ("", "-1")
"""What CUDA_VISIBLE_DEVICES says where GPUs are hidden on purpose."""
GPU = "cuda"
"""What torch calls the GPUs of NVIDIA and of AMD."""

KINDS: dict[str, Callable[[torch.device], Device]] = {"cpu": Processor, "meta": Processor}
"""By torch's name of a kind; any other is an `Accelerator`."""

_MADE: dict[torch.device, Device] = {}


def of(device: torch.device | str) -> Device:
    """The object of a device, one for all who ask."""
    device = torch.device(device)
    if device not in _MADE:
        made = KINDS.get(device.type, Accelerator)(device)
        if made.torch != device:
            return _MADE.setdefault(made.torch, made)  # the current one, which may be another next time
        _MADE[device] = made
    return _MADE[device]


def count() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose(kind: str, number: int | None = None) -> torch.device:
    """The device `device=auto|cpu|cuda` means here; an emulated one is the processor, which has little to do.

    Args:
        number: which of the GPUs, counted round; None: the current one.

    Raises:
        UserError: `cuda` is asked for, and torch sees none.
    """
    there = count()
    if kind == GPU and not there:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if shown is None else f" (CUDA_VISIBLE_DEVICES={shown})"
        rule, remedy = idle_gpu() or (f"no CUDA device is visible{hidden}", "use device=cpu or device=auto")
        raise UserError("device=cuda", rule, remedy)
    if kind not in ("auto", GPU) or not there:
        return torch.device("cpu")
    return torch.device(GPU) if number is None else torch.device(GPU, number % there)


def nccl_version() -> str | None:
    """Of the library that joins GPUs; None: torch was built without. AMD's says so: it does not talk to NVIDIA's."""
    if not dist.is_nccl_available():
        return None
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return f"RCCL {version}" if torch.version.hip else version


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
