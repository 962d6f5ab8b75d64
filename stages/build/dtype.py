"""Types that a configuration names."""

from __future__ import annotations

import torch


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` to `torch.bfloat16`."""
    return getattr(torch, name)
