"""What a thread does before it touches a device."""

from __future__ import annotations

import torch


def use(device: torch.device) -> None:
    """Make `device` the current one of the calling thread: the first call of every thread that touches it.

    CUDA's current device is a thread's own, and 0 at first. A thread that has not set it and leaves
    `torch.cuda.stream(...)` is put back on device 0, and makes a context of several hundred MB there. Nothing is done
    for a processor, or for `cuda` without a number, which is whatever is current.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
