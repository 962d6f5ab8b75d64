"""The device seam on the real device: order between queues, uploads that nobody waits for, times by events."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import devices
from benchmarks.gpu.rows import Bench, Row, needs
from benchmarks.record import bar

ROUNDS = 200
CLOSE = 0.05, 1e-3
"""How near a time by events must be to the host's: a share of it, and seconds."""


def _work(bench: Bench) -> tuple[torch.Tensor, int]:
    """An operand, and how often it is multiplied with itself: half a second of a large card."""
    n, times = (64, 4) if bench.small else (8192, 30)
    return torch.full((n, n), 1 / n, device=bench.device), times


def queues(bench: Bench) -> dict[str, Any]:
    """Two queues hand a tensor to and fro by marks, each doing what takes the device a while to it; without order some
    of it would be lost. In a thread of its own, which keeps its queue."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_handed, bench).result()


@torch.inference_mode()
def _handed(bench: Bench) -> dict[str, Any]:
    device = devices.of(bench.device)
    first, second = device.queue(), device.queue()
    x = torch.zeros(1 << (12 if bench.small else 22), device=bench.device)
    device.synchronize()
    for _ in range(ROUNDS):
        mark = None
        for queue in (first, second):
            queue.use()
            device.follow(mark, x)
            # Memory that is let go of at once, and that the other queue may get.
            x = (x * 0.5 + 0.5 * x + 1.0).clone()
            mark = device.mark(x)
        first.use()
        device.follow(mark, x)
    device.synchronize()
    wrong = int((x != 2.0 * ROUNDS).sum())
    return bar(f"{wrong} of {x.numel()} values wrong after {2 * ROUNDS} hand-overs", "0", wrong == 0)


@torch.inference_mode()
def uploads(bench: Bench) -> dict[str, Any]:
    """A host tensor may be changed as soon as `upload` has returned, whatever the device is at."""
    device, (x, times) = devices.of(bench.device), _work(bench)
    needs(not device.immediate, "nothing is copied to the processor")
    host = torch.arange(1 << 16)
    # The first memory of a size, and the first product, may wait for the device: not what is asked here.
    device.upload(host)
    x @ x
    device.synchronize()
    span = devices.Span(device)
    for _ in range(times):
        x = x @ x
    found = device.upload(host)
    host.zero_()
    waited = span.end().over
    wrong = int((found.cpu() != torch.arange(1 << 16)).sum())
    return bar(
        f"{wrong} values wrong, {'waited' if waited else 'nobody waited'}", "0, nobody waits", not (wrong or waited)
    )


@torch.inference_mode()
def spans(bench: Bench) -> dict[str, Any]:
    """A time by events against the host's clock round work that was waited for."""
    device, (x, times) = devices.of(bench.device), _work(bench)
    x @ x
    device.synchronize()
    begun = time.perf_counter()
    span = devices.Span(device)
    for _ in range(times):
        x = x @ x
    early = span.end().over
    took = span.seconds
    wall = time.perf_counter() - begun
    near = wall - took <= CLOSE[0] * wall + CLOSE[1] and 0 < took <= wall + CLOSE[1]
    value = (
        f"{took * 1e3:.2f} ms by the device, {wall * 1e3:.2f} ms by the host, {'over' if early else 'not over'} at once"
    )
    return bar(value, "within 5 % and 1 ms", device.immediate or (near and not early))


# The first row waits for the device to start.
ROWS = [Row("queues and marks", 8, queues), Row("uploads", 2, uploads), Row("device times", 2, spans)]
