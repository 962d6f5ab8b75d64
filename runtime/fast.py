"""What makes stages fast on a device: attention back end, compiled regions and CUDA graphs, as settings wish and the
device has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import torch

import devices
from conf.schema import Config, ModelConfig
from runtime.encoders import Picture
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.warm import warm_block, warm_decoder
from stages.build import build_decoder, build_network, torch_dtype
from stages.codec.base import Decoder
from stages.compiled import compile_decoder, compile_network, lacks, wanted
from stages.denoise import graphs
from stages.denoise.attention import AUTO, backend, fastest
from stages.denoise.denoiser import Denoiser

_WARMING = threading.Lock()
"""Held by the one worker of a process that compiles and records: a compiler waits for the device, which would end
another worker's recording."""


def require(config: Config, device: torch.device) -> None:
    """Refuse what a device cannot do, before anything loads.

    Raises:
        UserError: names the setting.
    """
    model, dtype = config.model, torch_dtype(config.model.dtype)
    backend(model.attention, device, dtype, model.network.head_dim)
    wanted(config.device.compile, device)
    graphs.require(device, config.device.graphs)


def fast_denoiser(
    config: Config,
    device: torch.device,
    picture: Picture,
    layers: range | None = None,
    count: Callable[[int], None] = lambda more: None,
) -> Denoiser:
    """A block of the network, loaded, and made as fast as the configuration asks; `count` hears of bytes as they come.

    Raises:
        UserError: weights cannot be read, or the device cannot.
    """
    network = build_network(config.model, device, layers, count=count)
    denoiser = Denoiser(config.model, network, picture.rows, picture.columns)
    if config.model.fp8:
        network.quantise(config.model.fp8)
    if wanted(config.device.compile, device):
        compile_network(network, must=config.device.compile == "true")
    if config.device.graphs != "never":
        graphs.attach(denoiser, config.device.graphs)
    return denoiser


def fast_decoder(config: Config, device: torch.device) -> tuple[Decoder, int]:
    """The decoder likewise, and what it keeps for one stream, in bytes."""
    decoder = build_decoder(config.model, device)
    held = decoder_bytes(decoder, config.model, Picture.of(config.model, config.stream), device)
    if wanted(config.device.compile, device):
        compile_decoder(decoder, must=config.device.compile == "true")
    return decoder, held


@torch.inference_mode()
def decoder_bytes(decoder: Decoder, model: ModelConfig, picture: Picture, device: torch.device) -> int:
    """What a decoder keeps for one stream, in bytes: all of it is pictures, so that one place of them tells."""
    place = torch.zeros(
        1, model.network.in_channels, model.chunk_frames, 1, 1, dtype=torch_dtype(model.dtype), device=device
    )
    state = decoder.start()
    # After the second chunk it no longer grows.
    for _ in range(2):
        decoder(place, state)
    return state.nbytes * picture.latent[0] * picture.latent[1]


def ready(
    config: Config, device: torch.device, pools: Iterable[BankPool], decoder: Decoder | None, loading: Loading
) -> None:
    """Compile and record before the first stream what is compiled and recorded at all.

    Args:
        pools: of the blocks held, with all of their banks in them.
        decoder: None: none is held.
        loading: told of it, and at the end how much was recorded in how long.
    """
    compiles, pools = wanted(config.device.compile, device), list(pools)
    runners = [p.denoiser.runner for p in pools if isinstance(p.denoiser.runner, graphs.Graphs)]
    if compiles or runners:
        began = time.monotonic()
        loading("what is compiled and recorded")
        with _WARMING:
            for pool in pools:
                warm_block(pool)
            if compiles and decoder:
                warm_decoder(decoder, config.model, Picture.of(config.model, config.stream).latent)
        recorded = sum(runner.recorded for runner in runners)
        loading(f"{recorded} CUDA graphs, in {time.monotonic() - began:.1f} s")
    # A worker's queue begins where nothing of this is under way.
    devices.of(device).synchronize()


def said(config: Config, device: torch.device) -> list[str]:
    """What settings on `auto` chose on a GPU, a line each with the way to have it otherwise; elsewhere they choose
    nothing."""
    if device.type == "cpu":
        return []
    model, lines = config.model, []
    if model.attention == AUTO:
        found = fastest(device, torch_dtype(model.dtype), model.network.head_dim)
        lines.append(f"model.attention=auto takes {found} (name another of them to have that)")
    if config.device.compile == "auto":
        missing = lacks(device)
        why = f"compiles nothing: it needs {missing}" if missing else "compiles stages (false: it does not)"
        lines.append(f"device.compile=auto {why}")
    if config.device.graphs == "auto" and devices.of(device).recorder():
        lines.append("device.graphs=auto records passes as CUDA graphs while workers load (never: it does not)")
    return lines
