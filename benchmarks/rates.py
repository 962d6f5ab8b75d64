"""What a device can do, measured: its matrix rate, its memory's, and how long some work takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from stages.dit.fp8 import Scaled
from stages.dit.layers import Affine


def seconds(work: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `repeats` runs in a row, by the device's own clock where it has one."""
    for _ in range(warm_up):
        work()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


@torch.inference_mode()
def matrix_rate(device: torch.device, dtype: torch.dtype, fp8: str | None = None) -> float:
    """Operations per second of a large square product of random numbers; with `fp8`, of its 8-bit product alone."""
    # Torch's 8-bit product on a CPU is for correctness: a large one would take minutes.
    n, repeats = (8192, 30) if device.type == "cuda" else (64 if fp8 else 512, 5)
    x, weight = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    if fp8:
        made = Scaled.made(Affine(weight, torch.zeros(n, device=device, dtype=dtype)), fp8)
        values, scale = made.quantised(x)
        work = lambda: made.product(values, scale, dtype)  # noqa: E731
    else:
        work = lambda: torch.mm(x, weight)  # noqa: E731
    return 2 * n**3 / statistics.median(seconds(work, device, repeats, 5))


@torch.inference_mode()
def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.empty(1 << (30 if device.type == "cuda" else 25), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(seconds(lambda: target.copy_(source), device, 10))
