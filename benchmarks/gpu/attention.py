"""Every attention back end against float32 on the processor, at the sizes of the shipped models and at odd ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

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


def shapes(small: bool) -> dict[str, tuple[int, int, int, int]]:
    """By name: queries, keys, heads, channels of a head."""
    found = {name: attention_shape(models.model(name)) for name in MODELS[2 if small else 0 :]}
    return found | {"x".join(map(str, shape)): shape for shape in ODD}


@torch.inference_mode()
def check(name: str, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """The farthest of all sizes that the back end takes."""
    why = BACKENDS[name].misses(bench.device, dtype, None)
    needs(why is None, f"not installed: {why}" if "package" in (why or "") else str(why))
    found, failed = {}, []
    for label, (new, keys, heads, channels) in shapes(bench.small).items():
        if BACKENDS[name].misses(bench.device, dtype, channels):
            continue
        g = torch.Generator().manual_seed(0)
        # Keys and values are a prefix of a bank that is longer.
        q, k, v = (torch.randn(1, n, heads, channels, generator=g).to(dtype) for n in (new, keys + 5, keys + 5))
        try:
            core = backend(name, bench.device, dtype, channels)
            own = (t.to(bench.device) for t in (q, k, v))
            y = (lambda q, k, v: core(q, k[:, :keys], v[:, :keys], None))(*own)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            failed.append(f"{label}: {str(error).splitlines()[0][:120]}")
            continue
        # Heads are apart, so that two of them show what all do.
        some = slice(None, None, max(1, heads - 1))
        wide = (t[:, :, some].float() for t in (q, k[:, :keys], v[:, :keys]))
        found[label] = distance(y[:, :, some], BACKENDS["sdpa"].run(*wide, None))
    worst = max(found, key=found.get, default="nothing ran")
    tolerance, far = TOLERANCE[dtype], max(found.values(), default=float("inf"))
    value = "; ".join([f"{far:.1e} at {worst}, of {len(found)} sizes", *failed])
    return bar(value, f"<= {tolerance:.0e}", far <= tolerance and not failed) | {"distances": found}


ROWS = [
    Row(f"attention {name} {str(dtype)[6:]}", 2, partial(check, name, dtype))
    for name, one in BACKENDS.items()
    for dtype in one.dtypes["cuda"]
]
