"""Every attention back end against float32 on the processor, at the sizes of the shipped models and at odd ones."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.gpu.rows import Bench, Row, distance, needs
from benchmarks.record import bar
from benchmarks.stage import attention_shape
from stages.denoise.attention import BACKENDS, backend

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative distance. A sum of rounded products is off by about the dtype's unit (8e-3, 1e-3)."""
MODELS = ("live_avatar_14b", "wan21_t2v_1_3b", "pocket_avatar", "nano")
ODD = ((7, 13, 2, 64), (257, 1031, 3, 128), (1, 4097, 2, 40), (333, 64, 1, 96))
"""Queries, keys, heads, channels of a head: none of them a multiple of a kernel's tile."""
BEHIND = 5
"""Entries of a bank that nobody may read."""


def shapes(small: bool) -> dict[str, tuple[int, int, int, int]]:
    """By name: queries, keys, heads, channels of a head."""
    found = {name: attention_shape(models.model(name)) for name in MODELS[2 if small else 0 :]}
    return found | {"x".join(map(str, shape)): shape for shape in ODD}


class Case(NamedTuple):
    """Inputs of a size in a dtype, and what the processor makes of two heads of it in float32: heads are apart.

    Attributes:
        q: queries.
        k, v: whole banks. What lies behind the keys is not a number, and so is what a kernel makes that reads it.
        keys: how many of their entries are seen.
        heads: those two.
        expected: what is made of them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    keys: int
    heads: slice
    expected: Tensor

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values there, the latter two as prefixes of banks, as a pass has them."""
        q, k, v = (t.to(device) for t in (self.q, self.k, self.v))
        return q, k[:, : self.keys], v[:, : self.keys]


@cache
@torch.inference_mode()
def case(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    """The same for every back end."""
    new, keys, heads, channels = shape
    g, whole = torch.Generator().manual_seed(0), keys + BEHIND
    q, k, v = (torch.randn(1, n, heads, channels, generator=g).to(dtype) for n in (new, whole, whole))
    some, seen = slice(None, None, max(1, heads - 1)), (q, k[:, :keys], v[:, :keys])
    expected = BACKENDS["sdpa"].run(*(t[:, :, some].float() for t in seen), None)
    k[:, keys:], v[:, keys:] = torch.nan, torch.nan
    return Case(q, k, v, keys, some, expected)


@torch.inference_mode()
def check(name: str, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """The farthest of all sizes that the back end takes."""
    why = BACKENDS[name].misses(bench.device, dtype, None)
    needs(why is None, f"not installed: {why}" if "package" in (why or "") else str(why))
    found, failed = {}, []
    for label, shape in shapes(bench.small).items():
        channels = shape[-1]
        if BACKENDS[name].misses(bench.device, dtype, channels):
            continue
        one = case(shape, dtype)
        try:
            core = backend(name, bench.device, dtype, channels)
            y = core(*one.on(bench.device), None)
        except Exception as error:  # whatever a package raises: other sizes may be right
            failed.append(f"{label}: {(str(error).splitlines() or [type(error).__name__])[0][:120]}")
            continue
        found[label] = distance(y[:, :, one.heads], one.expected)
    worst = max(found, key=found.get, default="nothing ran")
    tolerance, far = TOLERANCE[dtype], max(found.values(), default=float("inf"))
    value = "; ".join([f"{far:.1e} at {worst}, of {len(found)} sizes", *failed])
    return bar(value, f"<= {tolerance:.0e}", far <= tolerance and not failed) | {"distances": found}


ROWS = [
    Row(f"attention {name} {str(dtype)[6:]}", 1.5, partial(check, name, dtype))
    for name, one in BACKENDS.items()
    if one.run.__module__.startswith("stages.")  # whatever else this process has registered
    for dtype in one.dtypes["cuda"]
]
