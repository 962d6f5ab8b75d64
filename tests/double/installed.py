"""The device, made known to torch and to Everframe for as long as a test runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import devices
from devices import kinds
from devices.accelerator import Accelerator
from launch import places
from stages.denoise import attention
from tests.double import module
from tests.double.ledger import LEDGER, Ledger
from tests.double.module import CARDS, KIND
from tests.double.tensors import KERNELS, Pinned


class Twin(Accelerator):
    """A card, behind the class that GPUs have; torch pins memory for real GPUs only."""

    def pinned(self, size: int) -> Tensor:
        return Pinned.of(torch.empty(size, dtype=torch.uint8))


@cache
def _known() -> torch.library.Library:
    """Tell torch, once per process."""
    _setup_privateuseone_for_python_backend(KIND, sys.modules[module.__name__])
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "PrivateUse1")
    return library


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """What is noted while a test runs whose `device=auto` is this device.

    The test fails where anything was out of order that it has not asked for (`Ledger.found`).
    """
    _known()
    LEDGER.begin()
    monkeypatch.setitem(devices.KINDS, KIND, Twin)
    monkeypatch.setattr(kinds, "GPU", KIND)
    monkeypatch.setattr(places, "SPARE", 0.0)  # no model is too small for it
    for place in (devices, kinds):
        monkeypatch.setattr(place, "count", lambda: CARDS)
    for row in attention.BACKENDS.values():
        if "cpu" in row.dtypes:
            monkeypatch.setitem(row.dtypes, KIND, row.dtypes["cpu"])
    # Tensors of inference mode cannot be wrappers. Decorators, which were made long ago, ask for it by this name.
    monkeypatch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad() if mode else nullcontext())
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    attention.backend.cache_clear()
    yield LEDGER
    attention.backend.cache_clear()
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    for device in [device for device in kinds._MADE if device.type == KIND]:
        del kinds._MADE[device]
    for card in range(CARDS):
        module.set_stream(module.default_stream(card))
    module.set_device(0)
    found = LEDGER.found()
    assert not found, "\n".join(found)
