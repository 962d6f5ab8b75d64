"""Cards that are not there: tensors with a GPU's name and no values, on any build of torch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from devices.processor import Processor

CUDA, META = 1, 14
"""Numbers of device types in torch (c10/core/DeviceType.h)."""
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
"""torch's table of what makes a device current, by type (c10/core/impl/DeviceGuardImplInterface.h)."""


class _NoDevice(FakeTensorMode):
    """Tensors without values, whatever devices there are: one that another test has registered is of no use here."""

    avoid_device_init = True


@contextmanager
def cards() -> Iterator[None]:
    """Inside, tensors can be made on `cuda:0`, `cuda:1`, ...: operations say what comes out, and refuse what they would
    refuse there.

    A build without CUDA has nothing that makes a card current, which indexing asks for, and the device `meta` has
    something that does nothing.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, GUARDS)
    there = guards[CUDA]
    guards[CUDA] = there or guards[META]
    try:
        with _NoDevice(allow_non_fake_inputs=True):
            yield
    finally:
        guards[CUDA] = there


class Card(Processor):
    """What is asked of a Hopper card beside arithmetic."""

    def capability(self) -> tuple[int, int]:
        return 9, 0
