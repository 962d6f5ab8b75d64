"""Devices: everything that is asked of one beside arithmetic on its tensors, behind one small object per kind.

Order (queues, marks), the clock of a pass, pinned memory, graphs, figures of memory, and "make this device this
thread's". A kind of device is a row of `KINDS`; any that torch has a module for (`torch.cuda`, which is AMD's, too) is
an `Accelerator`. Nothing else asks those modules.
"""

from devices.base import Device, Mark, Queue, Recorder, Span
from devices.kinds import KINDS, choose, count, idle_gpu, nccl_version, of
from devices.processor import round_alike

round_alike()  # here, since MKL reads it before its first product, and whoever computes imports this

__all__ = ["KINDS", "Device", "Mark", "Queue", "Recorder", "Span", "choose", "count", "idle_gpu", "nccl_version", "of"]
