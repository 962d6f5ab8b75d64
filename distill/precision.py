"""Where bfloat16 pays: on accelerators, and on CPUs that multiply it. Others emulate it, five times slower."""

from __future__ import annotations

from functools import cache

import torch


@cache
def bfloat16_pays(device: str) -> bool:
    """Whether matrix products of a device type are faster in bfloat16 than in float32."""
    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device | str, wanted: bool = True) -> torch.autocast:
    """bfloat16 for matrix products, where it is wanted and pays."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and bfloat16_pays(kind))
