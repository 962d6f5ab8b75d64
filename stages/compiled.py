"""`torch.compile` for a stage, from outside.

Of a layer, the three regions between its attentions are compiled. They see no history, position or layer number, and
parameters come as arguments, so all layers, chunks and slots share three compiled functions; only another number of
tokens (a prefill) or another kind of product (8-bit) makes them anew. Compiling a whole layer would make one for each
slot of the ring and each layer. Of a decoder, what one latent frame passes through is compiled: three times, since the
first two frames of a stream take other ways than all later ones.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from conf.errors import UserError
from stages.denoise.network import Network


def check(device: torch.device) -> None:
    """Refuse where there is no compiler.

    Raises:
        UserError: no C++ compiler for a CPU, no Triton for a GPU.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("device.compile=true", "needs the package triton on CUDA", "set device.compile=false")
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("device.compile=true", "needs a C++ compiler on a CPU", "set device.compile=false")


@cache
def compiled(region: Callable, backend: str = "inductor") -> Callable:
    """A region, compiled when it is first called; once per process."""
    return torch.compile(region, dynamic=False, backend=backend)


def compile_network(network: Network, backend: str = "inductor") -> Network:
    """Compile what is between attentions; after `Network.quantise`, if that is wanted.

    Raises:
        UserError: see `check`.
    """
    check(network.device)
    return network.compile(partial(compiled, backend=backend))


def compile_decoder(decoder: nn.Module, backend: str = "inductor") -> nn.Module:
    """Compile a decoder's way of a latent frame, where it has one (`decoder.decoder`, as published).

    Raises:
        UserError: see `check`.
    """
    if isinstance(inner := getattr(decoder, "decoder", None), nn.Module):
        check(next(decoder.parameters()).device)
        inner.compile(dynamic=False, backend=backend)
    return decoder
