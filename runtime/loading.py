"""Opening and loading what one worker holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import BinaryIO

import torch
from torch import Tensor

import devices
from conf.schema import Config
from parallel.plan import Plan
from runtime import emulated
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.fast import fast_decoder, fast_denoiser, ready, require
from runtime.orders import Open
from runtime.outputs import look
from runtime.parts import Parts
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.room import require_weights
from stages.build import torch_dtype
from stages.codec.base import parameter_bytes
from stages.denoise.sampler import Sampler
from stages.denoise.schedule import schedule_of
from stages.post import Upscale


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
    queue, known = devices.of(device).queue(passes=True), list(orders)
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
    require(config, device)
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
    ready(config, device, parts.pools.values(), parts.decoder, loading)
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
