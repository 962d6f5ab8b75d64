"""Opening and loading what one worker holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import BinaryIO

import torch
from torch import Tensor

import devices
from conf.schema import Config, ModelConfig
from parallel.plan import Plan
from runtime import emulated
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.orders import Open
from runtime.outputs import look
from runtime.parts import Parts
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.room import require_weights
from runtime.warm import warm_block, warm_decoder
from stages.build import build_decoder, build_network, torch_dtype
from stages.codec.base import Decoder, parameter_bytes
from stages.compiled import compile_decoder, compile_network
from stages.denoise import graphs
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import Sampler
from stages.denoise.schedule import schedule_of
from stages.post import Upscale


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
    if config.device.compile:
        compile_network(network)
    if config.device.graphs != "never":
        graphs.attach(denoiser, config.device.graphs)
    return denoiser


def fast_decoder(config: Config, device: torch.device) -> tuple[Decoder, int]:
    """The decoder likewise, and what it keeps for one stream, in bytes."""
    decoder = build_decoder(config.model, device)
    held = decoder_bytes(decoder, config.model, Picture.of(config.model, config.stream), device)
    return (compile_decoder(decoder) if config.device.compile else decoder), held


def post_of(config: Config) -> Callable[[Tensor], Tensor] | None:
    """What is done to decoded frames, where anything is."""
    return Upscale(config.post.scale) if config.post.name == "upscale" and config.sink.needs_frames else None


def load_parts(
    plan: Plan,
    index: int,
    config: Config,
    orders: Iterable[Open] = (),
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    loading: Loading | None = None,
    leads: bool = True,
) -> Parts:
    """Open and load what worker `index` needs.

    Args:
        plan, index, config: the run, and which worker of it this is.
        orders: streams that are known already.
        device: None: what `device` in the configuration means here.
        stdin: where live sources read; None: standard input.
        loading: told what is being loaded.
        leads: whether this process is the worker; the others of its group only share the passes of its blocks.

    Raises:
        UserError: a source, weight file or output cannot be used, or memory lacks for the weights.
    """
    loading = loading or Loading()
    device = devices.choose(config.device.kind) if device is None else device
    torch.set_num_threads(config.device.threads)
    model, picture = config.model, Picture.of(config.model, config.stream)
    queue, known = devices.of(device).queue(), list(orders)
    queue.use()
    parts = Parts(device, torch_dtype(model.dtype), Sampler.of(model, schedule_of(model).steps), queue)
    if leads and index == plan.stages[-1].worker:
        for order in known:
            look(config, order)
    if config.device.kind == "emulated":
        openings = partial(partial, condition, emulated.EmulatedConditioning, config, stdin)
        emulated.fill(parts, plan, index, config, openings)
        parts.prepare(known if parts.conditioning else ())
        return parts
    require_weights(config, plan.weight_bytes(index, 0 if leads else 1), device)
    if index == plan.encode and leads:
        loading("sources and encoders")
        encoders = Encoders(model, device)
        parts.conditioning = partial(condition, Conditioning, config, stdin, encoders)
        parts.prepare(known)
        if not known:
            encoders.load()
        parts.weight_bytes += encoders.weight_bytes
    for block in plan.blocks_of(index):
        layers = plan.blocks[block]
        loading(f"layers {layers.start}-{layers.stop - 1}", plan.block_bytes(block))
        denoiser = parts.denoisers[block] = fast_denoiser(config, device, picture, layers, loading.count)
        parts.weight_bytes += parameter_bytes(denoiser.network)
        parts.pools[block] = BankPool(denoiser, plan.levels_of(index, block), max(1, len(known)), plan.degree)
    if index == plan.decode and leads and config.sink.needs_frames:
        loading("decoder")
        parts.decoder, parts.decoder_bytes = fast_decoder(config, device)
        parts.weight_bytes += parameter_bytes(parts.decoder)
    if config.device.compile:
        loading("what is compiled")
        for pool in parts.pools.values():
            warm_block(pool)
        if parts.decoder:
            warm_decoder(parts.decoder, model, picture.latent)
    if leads and any(stage.name == "post" and stage.worker == index for stage in plan.stages):
        parts.post = post_of(config)
    devices.of(device).synchronize()  # other queues use what was loaded on this one
    return parts


def condition(
    kind: type[Conditioning], config: Config, stdin: BinaryIO | None, encoders: Encoders, *opening
) -> Conditioning:
    """What drives a stream.

    Args:
        kind: of conditioning.
        opening: the order, the stream's prompts and its stop event.
    """
    order, prompts, stop = opening
    state = order.keep.state if order.keep else None
    return kind(
        config.model, order.config, order.source, encoders, stdin, stop, state, sink=order.sink, prompts=prompts
    )


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
