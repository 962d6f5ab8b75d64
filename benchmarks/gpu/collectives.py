"""NCCL by itself: one rank on one card, and a rank on each where there are several."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

import devices
from benchmarks.gpu.rows import Bench, Row, needs
from benchmarks.record import bar
from parallel.exchange import GroupExchange
from parallel.transport import gloo, nccl

PATIENCE = timedelta(seconds=30)
HOST = "127.0.0.1"
VALUES = 1 << 22


def alone(bench: Bench) -> dict[str, Any]:
    """A communicator of one rank: whether the library is there, whole, and fits the driver; without a card, gloo."""
    device, store = devices.of(bench.device), dist.HashStore()
    begun = time.perf_counter()
    group = (gloo if device.immediate else nccl)(store, 0, 1, PATIENCE)
    x = torch.arange(1 << 16, device=bench.device, dtype=torch.int32)
    sent, y = x.clone(), torch.empty_like(x)
    group.alltoall_base(y, x, [], []).wait()
    group.broadcast([sent]).wait()
    device.synchronize()
    took = time.perf_counter() - begun
    if not device.immediate:
        group.shutdown()
    same = torch.equal(y, x) and torch.equal(sent, x)
    library = "gloo" if device.immediate else f"NCCL {devices.nccl_version()}"
    return bar(f"{library}: {took:.2f} s, values {'arrive' if same else 'differ'}", "values arrive", same)


def _rank(rank: int, size: int, port: int, results: Any) -> None:
    """A process of `together`: (seconds for the communicator, seconds of an exchange, whether values arrived)."""
    device = devices.choose("cuda", rank)
    devices.of(device).use()
    store = dist.TCPStore(HOST, port, is_master=False, timeout=PATIENCE)
    begun = time.perf_counter()
    exchange = GroupExchange(store, 0, rank, size, device, PATIENCE.total_seconds(), "nccl")
    made = time.perf_counter() - begun
    x = torch.arange(size, device=device).view(-1, 1).repeat(1, VALUES) + rank * size
    exchange.all_to_all(x)
    devices.of(device).synchronize()
    span = devices.Span(devices.of(device))
    y = exchange.all_to_all(x)
    took = span.end().seconds
    same = bool((y == torch.arange(size, device=device).view(-1, 1) * size + rank).all())
    results.put((made, took, same))
    exchange.close()


def together(bench: Bench) -> dict[str, Any]:
    """A rank on every card: how long a communicator takes, and an exchange of 32 MB with each of the others."""
    size = devices.count()
    needs(size > 1, f"two cards are needed, {size} are visible")
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (size, store.port, results), nprocs=size)
    made, took, same = zip(*(results.get() for _ in range(size)), strict=True)
    value = f"{size} cards: communicator {max(made):.2f} s, exchange {max(took) * 1e3:.2f} ms"
    return bar(f"{value}, values {'arrive' if all(same) else 'differ'}", "values arrive", all(same))


ALONE = [Row("NCCL, one rank", 6, alone)]
TOGETHER = [Row("NCCL, all cards", 20, together)]
