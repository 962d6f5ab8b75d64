"""Attention behind one function, with named back ends and a table of what each supports."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import devices
from conf.errors import UserError, nearest

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""core(q, k, v, mask) -> y: attention itself."""

KeysValues = tuple[Tensor, Tensor]


class History(Protocol):
    """Attention over what a stream has been: whoever runs a pass decides where keys and values are kept."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, adapter: str = "") -> Tensor:
        """What a layer's tokens, or an adapter's, see: y like q.

        Args:
            layer: which.
            q, k, v: [B, N, heads, head_dim], without positions. An adapter's k and v may have fewer entries than q:
                one for each latent frame.
            adapter: whose history, a name of `NetworkConfig.adapters`; empty: the tokens' own.

        Without gradients it may overwrite q, k and v: nobody reads them afterwards.
        """


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


# Torch's attention by one kernel and no other: its own operations, called as `scaled_dot_product_attention` calls them.
# `sdpa_kernel`, the way that is documented, changes flags of the process, so other threads would lose kernels.


def _by_heads(*tensors: Tensor) -> Iterator[Tensor]:
    return (t.transpose(1, 2) for t in tensors)


def _bias(mask: Tensor | None, q: Tensor, hidden: float = -math.inf) -> Tensor | None:
    """What is added to the products of queries and keys, [N, M]: `hidden` where the mask is False."""
    return None if mask is None else q.new_zeros(mask.shape).masked_fill_(~mask, hidden)


def _learns(*tensors: Tensor) -> bool:
    """Whether a kernel has to keep what gradients need."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    bias = _bias(mask, q, -65504.0)  # torch's own choice: cuDNN has no infinity
    out = torch.ops.aten._scaled_dot_product_cudnn_attention(*_by_heads(q, k, v), bias, _learns(q, k, v))
    return out[0].transpose(1, 2)


def _sdpa_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.device.type == "cpu":
        run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return run(*_by_heads(q, k, v), attn_mask=_bias(mask, q))[0].transpose(1, 2)
    if mask is not None:
        raise ValueError("FlashAttention-2 takes no mask on a GPU")
    return torch.ops.aten._scaled_dot_product_flash_attention(*_by_heads(q, k, v))[0].transpose(1, 2)


def _sdpa_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    bias = _bias(mask, q)
    if bias is not None:  # rows begin at multiples of 16 values, and there are as many as products
        bias = F.pad(bias, (0, -bias.shape[1] % 16))[:, : bias.shape[1]].expand(len(q), q.shape[2], -1, -1)
    out = torch.ops.aten._scaled_dot_product_efficient_attention(*_by_heads(q, k, v), bias, _learns(q, k, v))
    return out[0].transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, attn_bias=mask)


def _flash3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from flash_attn_interface import flash_attn_func

    if mask is not None:
        raise ValueError("FlashAttention-3 takes no mask")
    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # some versions return the log-sum-exp, too


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """An attention implementation and what it needs.

    Attributes:
        run: the implementation.
        package: to be installed.
        dtypes: by kind of device.
        widest: head.
        capability: the oldest CUDA device it runs on.
        amd: whether it runs on AMD's GPUs, too, which torch calls CUDA devices.
    """

    run: Attend
    package: str
    dtypes: Mapping[str, tuple[torch.dtype, ...]]
    widest: float = float("inf")
    capability: tuple[int, int] = (0, 0)
    amd: bool = True

    def misses(self, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
        """What it needs and does not find; None: it can run."""
        here = self.dtypes.get(device.type)
        if here is None:
            return f"needs a device of kind {' or '.join(k for k in self.dtypes if k != 'meta')}, not {device.type}"
        if dtype not in here:
            return f"needs {' or '.join(map(_short, here))} on {device.type}, not {_short(dtype)}"
        if head_dim is not None and (head_dim > self.widest or (self.widest < float("inf") and head_dim % 8)):
            return f"needs heads of a multiple of 8 up to {self.widest}, not {head_dim}"
        if (has := devices.of(device).capability()) and has < self.capability:
            return f"needs compute capability {'.'.join(map(str, self.capability))}"
        if not self.amd and (arch := devices.of(device).arch()):
            return f"is for NVIDIA's GPUs, not {arch}"
        return None if importlib.util.find_spec(self.package) else f"needs the package {self.package}"


BACKENDS = {
    "sdpa": Backend(_sdpa, "torch", {"cpu": FLOATS, "cuda": FLOATS, "meta": FLOATS}),
    "sdpa_cudnn": Backend(_sdpa_cudnn, "torch", {"cuda": HALVES}, 128, (8, 0), amd=False),
    "sdpa_flash": Backend(_sdpa_flash, "torch", {"cpu": FLOATS, "cuda": HALVES}, 256, (8, 0)),
    "sdpa_efficient": Backend(_sdpa_efficient, "torch", {"cuda": FLOATS}),
    "xformers": Backend(_xformers, "xformers", {"cuda": HALVES}),
    "flash3": Backend(_flash3, "flash_attn_interface", {"cuda": HALVES}, 256, (9, 0), amd=False),
}
"""`sdpa` leaves the choice of the kernel to torch; meta tensors are for counting."""

AUTO = "auto"
FASTEST = ("flash3", "sdpa")
"""What `auto` tries, in order. FlashAttention-3 does up to 740 TFLOP/s on an H100, twice FlashAttention-2 (arXiv
2407.08608), and whoever installed it wants it. Otherwise torch chooses among cuDNN's, FlashAttention-2 and its own by
device and shape: to name one of them would refuse shapes that it does not take, such as a single query."""


def fastest(device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str:
    """The back end that `auto` means here."""
    return next(name for name in FASTEST if not BACKENDS[name].misses(device, dtype, head_dim))


def usable(device: torch.device | str, dtype: torch.dtype, head_dim: int | None = None) -> list[str]:
    """Names of the back ends that can run here."""
    return [name for name, b in BACKENDS.items() if not b.misses(torch.device(device), dtype, head_dim)]


@lru_cache
def backend(name: str, device: torch.device | str, dtype: torch.dtype, head_dim: int | None = None) -> Attend:
    """The back end `name`, if it can run here.

    Args:
        name: of `BACKENDS`, or `auto`.
        head_dim: channels of a head; None: any that it takes.

    Returns:
        f(q [B, N, heads, head_dim], k [B, M, ...], v [B, M, ...], mask [N, M] of bool or None) -> [B, N, ...].

    Raises:
        UserError: no such back end, or it does not support this device, dtype or head, or is not installed.
    """
    if name == AUTO:
        name = fastest(torch.device(device), dtype, head_dim)
    if name not in BACKENDS:
        raise UserError(f"model.attention={name}", "no such attention back end", nearest(name, (AUTO, *BACKENDS)))
    if missing := BACKENDS[name].misses(torch.device(device), dtype, head_dim):
        raise UserError(f"model.attention={name}", missing, f"use one of {', '.join(usable(device, dtype, head_dim))}")
    return BACKENDS[name].run


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
