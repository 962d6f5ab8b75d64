"""`torch.compile` for a stage, from outside.

Of a layer, the three regions between its attentions are compiled. They see no history, position or layer number, and
parameters come as arguments, so all layers, chunks and slots share three compiled functions; only another number of
tokens (a prefill) or another kind of product (8-bit) makes them anew. Compiling a whole layer would make one for each
slot of the ring and each layer. Of a decoder, what one latent frame passes through is compiled: three times, since the
first two frames of a stream take other ways than all later ones.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from conf.errors import UserError
from stages.denoise.network import Network

log = logging.getLogger(__name__)

_CALLING = threading.Lock()
"""Held by every call of a compiled function, in every thread. torch looks without a lock for what fits a call: of two
calls at once one may find nothing, and compile again. And while one compiles, torch refuses all others."""

COMPILERS = {
    "cpu": ("a C++ compiler on a CPU (g++, or what CXX names)", "CXX", ("g++",)),
    "cuda": ("gcc on CUDA (or what CC names)", "CC", ("gcc", "clang")),
}
"""By kind of device: what builds for it, or on CUDA what starts Triton's kernels; the variable that names another, and
where it is not set, the names that are tried."""


def lacks(device: torch.device) -> str | None:
    """What the compiler needs on a device and does not find; None: it can run."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton on CUDA"
    if device.type not in COMPILERS:
        return None
    need, variable, names = COMPILERS[device.type]
    named = os.environ.get(variable)
    return None if any(map(shutil.which, (named,) if named else names)) else need


def wanted(wish: str, device: torch.device) -> bool:
    """Whether `device.compile` means that stages are compiled here. `auto`: where products are quick and the arithmetic
    between them is not, on a GPU that has what the compiler needs.

    Raises:
        UserError: `true`, and something lacks.
    """
    missing = lacks(device)
    if wish == "true" and missing:
        raise UserError("device.compile=true", f"needs {missing}", "set device.compile=auto")
    return wish == "true" or (wish == "auto" and device.type == "cuda" and not missing)


class Region:
    """A function that is compiled when it is first called.

    Args:
        plain: the function.
        must: whether a compiler that fails is an error; otherwise the function stays as it is, which is said once.
    """

    def __init__(self, plain: Callable, backend: str = "inductor", must: bool = True):
        self._plain, self._must, self._works = plain, must, False
        self._run: Callable = torch.compile(plain, dynamic=False, backend=backend)

    def __call__(self, *args: Any) -> Any:
        if self._run is self._plain:
            return self._run(*args)
        from torch._dynamo.exc import TorchDynamoException  # of the compiler, which takes seconds to import

        try:
            with _CALLING:
                out = self._run(*args)
            self._works = True
            return out
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Not all that the compiler raises is of its own kind. Once it has worked, the rest is the work's.
            if self._works and not isinstance(error, TorchDynamoException):
                raise
            why = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            if self._must:
                raise UserError(
                    "device.compile=true", f"the compiler failed: {why}", "set device.compile=auto"
                ) from error
            name = getattr(self._plain, "__qualname__", "a region")
            log.warning("%s is not compiled: %s (device.compile=false compiles nothing)", name, why)
            self._run = self._plain
            return self._run(*args)


@cache
def compiled(region: Callable, backend: str = "inductor", must: bool = True) -> Region:
    """A region of the network, once per process."""
    return Region(region, backend, must)


def compile_network(network: Network, backend: str = "inductor", must: bool = True) -> Network:
    """Compile what is between attentions; after `Network.quantise`, if that is wanted.

    Args:
        must: see `Region`.
    """
    return network.compile(partial(compiled, backend=backend, must=must))


def compile_decoder(decoder: nn.Module, backend: str = "inductor", must: bool = True) -> nn.Module:
    """Compile a decoder's way of a latent frame, where it has one (`decoder.decoder`, as published)."""
    if isinstance(inner := getattr(decoder, "decoder", None), nn.Module):
        inner.forward = Region(inner.forward, backend, must)
    return decoder
