"""Attention behind one function, with named back ends and a table of what each supports."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import UserError, nearest


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, attn_bias=mask)


@dataclass(frozen=True)
class Backend:
    """An attention implementation: what it needs, where it runs, what it computes in."""

    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    package: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]


BACKENDS = {
    "sdpa": Backend(_sdpa, "torch", ("cpu", "cuda"), (torch.float32, torch.bfloat16, torch.float16)),
    "xformers": Backend(_xformers, "xformers", ("cuda",), (torch.bfloat16, torch.float16)),
}

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def backend(name: str, device: torch.device | str, dtype: torch.dtype) -> Attend:
    """The back end `name`, if it can run here.

    Returns:
        f(q [B, N, heads, head_dim], k [B, M, ...], v [B, M, ...], mask [N, M] of bool or None) -> [B, N, ...].

    Raises:
        UserError: no such back end, or it does not support this device or dtype or is not installed.
    """
    kind = torch.device(device).type
    usable = [
        n
        for n, b in BACKENDS.items()
        if kind in b.devices and dtype in b.dtypes and importlib.util.find_spec(b.package) is not None
    ]
    if name not in BACKENDS:
        raise UserError(f"model.attention={name}", "no such attention back end", nearest(name, BACKENDS))
    if name not in usable:
        needs = BACKENDS[name]
        raise UserError(
            f"model.attention={name}",
            f"needs {needs.package} on {'/'.join(needs.devices)} with "
            f"{'/'.join(str(d).removeprefix('torch.') for d in needs.dtypes)}, "
            f"not {kind} with {str(dtype).removeprefix('torch.')}",
            f"use one of {', '.join(usable)}",
        )
    return BACKENDS[name].run
