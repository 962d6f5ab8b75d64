"""What a worker has for streams: bytes that one more of them needs there, and bytes that are free."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

import devices
from conf.errors import UserError
from conf.schema import Config
from runtime.orders import host
from runtime.parts import Parts

GB = 1e9
PATIENCE_S, LOOK_S = 5.0, 0.05
"""Longest wait for memory of a process that is gone, and between two looks."""


def room(parts: Parts) -> dict[str, Any]:
    """What a worker that has loaded `parts` tells: plain values.

    `stream_bytes` that each stream needs there, `pooled` streams that have them already, `free_bytes` for others in
    `memory`: workers that name the same memory share what is free in it.
    """
    pooled = min((pool.allocated for pool in parts.pools.values()), default=0)
    memory, free = free_bytes(parts.device)
    return {"stream_bytes": parts.stream_bytes, "pooled": pooled, "memory": memory, "free_bytes": free}


def require_weights(config: Config, needed: int, device: torch.device) -> None:
    """Refuse weights that memory has no room for, before any of them is made.

    Args:
        config: the run.
        needed: bytes of the weights that this process is to hold.
        device: where.

    Raises:
        UserError: more than is free there.
    """
    _, free = free_bytes(device)
    if needed > free:
        raise UserError(
            f"model={config.model.name}",
            f"has {needed / GB:.1f} GB of weights here, and {device} has {free / GB:.1f} GB free",
            "use more workers on more devices (plan=layers), or a smaller model or dtype",
        )


def wait_for(needed: int, device: torch.device) -> None:
    """Give the memory of a process that has just died a moment to be free again, where it is needed."""
    end = time.monotonic() + PATIENCE_S
    while free_bytes(device)[1] < needed and time.monotonic() < end:
        time.sleep(LOOK_S)


def require_together(config: Config, told: Sequence[dict[str, Any]]) -> None:
    """Refuse weights of several processes that the memory which they share has no room for.

    Args:
        told: `bytes` that each is to hold, and what was `free` when it looked: the most is that of the first.

    Raises:
        UserError: more than was free.
    """
    needed, free = sum(one["bytes"] for one in told), max(one["free"] for one in told)
    if needed > free:
        raise UserError(
            f"model={config.model.name}",
            f"{len(told)} processes hold {needed / GB:.1f} GB of it in a memory that had {free / GB:.1f} GB free",
            "use plan=layers (each holds its own layers), fewer workers there, or a smaller model or dtype",
        )


def free_bytes(device: torch.device) -> tuple[str, int]:
    """(which memory, bytes free in it) of a device; of a processor what its host, or its container, has left."""
    asked = devices.of(device)
    return "/".join(filter(None, (host(), asked.where()))), asked.free_bytes()
