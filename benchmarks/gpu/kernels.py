"""Where time goes: the kernels of a step and of a decode, as torch's profiler sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.profiler import ProfilerActivity, profile

import devices
from benchmarks.gpu.rows import Bench, Row
from benchmarks.gpu.stages import AVATAR, decoded, subject
from benchmarks.stage import Stage, decode_work

TIMES, MOST, NAMED = 3, 20, 3
"""Runs that are watched, kernels in the file, and kernels in the row."""


def table(label: str, work: Callable[[], object], bench: Bench) -> dict[str, Any]:
    """Watch some runs; the table goes to a file of the results' folder."""
    device = devices.of(bench.device)
    cuda = [] if device.immediate else [ProfilerActivity.CUDA]
    device.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as watched:
        for _ in range(TIMES):
            work()
        device.synchronize()
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = watched.key_averages()
    path = bench.folder / f"kernels-{label}.txt"
    path.write_text(found.table(sort_by=by, row_limit=MOST, max_name_column_width=100))
    times = {one.key: getattr(one, by) for one in found}
    whole = sum(times.values()) or 1
    first = sorted(times, key=times.get, reverse=True)[:NAMED]
    value = ", ".join(f"{times[name] / whole:.0%} {name[:40]}" for name in first)
    return {"value": f"{label}: {value}; {path.name}", "kernels": {name: times[name] / whole for name in first}}


def slowest(bench: Bench) -> dict[str, Any]:
    """Of the avatar's variants measured so far the one that is farthest from the matrix rate."""
    steps = [row for name, row in bench.log.rows().items() if name.startswith(f"step {AVATAR} ") and "ms" in row]
    variant = min(steps, key=lambda row: row["of_matrix_rate"])["variant"] if steps else "plain"
    stage = Stage(subject(AVATAR, bench), bench.device, variant)
    for _ in range(stage.settled):  # as for its time
        stage.step()
    return table(variant, stage.step, bench)


def decode(kind: str, bench: Bench) -> dict[str, Any]:
    """A chunk of the avatar's latents through a decoder."""
    return table(f"decode-{kind}", decode_work(*decoded(kind, bench), bench.device), bench)


ROWS = [Row("kernels of the slowest step", 25, slowest), Row("kernels of decode wan", 8, partial(decode, "wan"))]
