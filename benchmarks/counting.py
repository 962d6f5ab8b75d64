"""Arithmetic and bytes that a stage cannot do without, counted from shapes: the work is run on the meta device.

Counted are matrix products, convolutions and attention, two operations for a multiply-add. Bytes are their operands,
each read or written once; of attention, scores and probabilities are left out, since no kernel worth its name writes
them. All else (norms, modulation, rotation) is what a better implementation could hide behind these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Count:
    """What some work needs: operations in linears and convolutions, operations in attention, bytes."""

    linear: float
    attention: float
    bytes: int

    @property
    def flops(self) -> float:
        return self.linear + self.attention


class _Bytes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            sizes = [t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            # On the meta device attention is two batched products, and the largest operand of each is the scores.
            self.total += sum(sizes) - (max(sizes) if func._overloadpacket is aten.bmm else 0)
        return out


def count(work: Callable[[], object]) -> Count:
    """What `work` needs; its tensors are on the meta device, so it takes no time."""
    # The flop counter comes first, since it takes composite operations apart.
    with torch.inference_mode(), _Bytes() as moved, FlopCounterMode(display=False) as flops:
        work()
    by_operation = flops.get_flop_counts()["Global"]
    attention = by_operation.get(aten.bmm, 0)
    return Count(float(flops.get_total_flops() - attention), float(attention), moved.total)
