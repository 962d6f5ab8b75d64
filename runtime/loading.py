"""Opening and loading what one worker holds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import BinaryIO

import torch

import devices
from conf.schema import Config
from parallel.plan import Plan
from runtime import emulated
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, Picture
from runtime.ends import LiveEnds
from runtime.fast import fast_decoder, fast_denoiser, ready, require
from runtime.journal import Journal
from runtime.kept import Kept
from runtime.orders import Open
from runtime.outputs import look
from runtime.parts import Parts
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.room import require_weights
from stages.build import torch_dtype
from stages.codec.base import Decoder, parameter_bytes
from stages.denoise.sampler import Sampler
from stages.denoise.schedule import schedule_of
from stages.post import post_of


def load_parts(
    plan: Plan,
    index: int,
    config: Config,
    orders: Iterable[Open] = (),
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    loading: Loading | None = None,
    leads: bool = True,
    held: Parts | None = None,
) -> Parts:
    """Open and load what worker `index` needs.

    Args:
        plan, index, config: the run, and which worker of it this is.
        orders: streams that are known already.
        device: None: what `device` in the configuration means here.
        stdin: where live sources read; None: standard input.
        loading: told what is being loaded.
        leads: whether this process is the worker; the others of its group only share the passes of its blocks.
        held: what this process has loaded before: of it all is taken that is wanted again.

    Raises:
        UserError: a source, weight file or output cannot be used, or memory lacks for the weights.
    """
    loading, known = loading or Loading(), list(orders)
    parts = _empty(config, device, held)
    device, outputs = parts.device, plan.stages[-1].worker
    if leads and index == outputs:
        for order in known:
            look(config, order)
    if config.device.kind == "emulated":
        openings = partial(partial, condition, emulated.EmulatedConditioning, config, stdin, parts.kept)
        emulated.fill(parts, plan, index, config, openings)
        parts.prepare(known if parts.conditioning else ())
        return parts
    require(config, device)
    require_weights(config, plan.weight_bytes(index, 0 if leads else 1) - (held.weight_bytes if held else 0), device)
    if index == plan.encode and leads:
        _encode(parts, config, stdin, known, loading, held)
    levels = {block: plan.levels_of(index, block) for block in plan.blocks_of(index)}
    for block in levels:
        _block(parts, plan, block, config, loading, held)
    fresh = []
    for block, denoiser in parts.denoisers.items():
        pool = next((p for p in (held.pools.values() if held else ()) if p.denoiser is denoiser), None)
        if pool is None or pool.levels != tuple(levels[block]):
            fresh.append(pool := BankPool(denoiser, levels[block], max(1, len(known)), plan.degree))
        parts.pools[block] = pool
    decoder = None
    if index == plan.decode and leads and config.sink.needs_frames:
        decoder = _decode(parts, config, loading, held)
    ready(config, device, fresh, decoder, loading)
    if leads and any(stage.name == "post" and stage.worker == index for stage in plan.stages):
        parts.post = post_of(config)
    devices.of(device).synchronize()  # other queues use what was loaded on this one
    return parts


def load_spare(plan: Plan, config: Config, device: torch.device, stdin: BinaryIO | None, loading: Loading) -> Parts:
    """Open and load what any worker of a plan may need, banks aside.

    Raises:
        UserError: as `load_parts`.
    """
    parts = _empty(config, device, None)
    if config.device.kind == "emulated":
        return parts
    require(config, device)
    require_weights(config, plan.spare_bytes, device)
    _encode(parts, config, stdin, [], loading, None)
    for block in range(len(plan.blocks)):
        _block(parts, plan, block, config, loading, None)
    if config.sink.needs_frames:
        _decode(parts, config, loading, None)
    devices.of(device).synchronize()
    return parts


def _empty(config: Config, device: torch.device | None, held: Parts | None) -> Parts:
    """Parts that hold nothing yet, but for what outlives a generation."""
    device = devices.choose(config.device.kind) if device is None else device
    torch.set_num_threads(config.device.threads)
    model = config.model
    if held is None:
        queue = devices.of(device).queue(passes=True)
        queue.use()
    else:
        queue = held.queue
    parts = Parts(device, torch_dtype(model.dtype), Sampler.of(model, schedule_of(model).steps), queue)
    if held is not None:
        parts.kept = held.kept
    return parts


def _encode(
    parts: Parts, config: Config, stdin: BinaryIO | None, known: list[Open], loading: Loading, held: Parts | None
) -> None:
    if held is not None and held.conditioning is not None:
        parts.conditioning, parts.encoders = held.conditioning, held.encoders
        parts.encoder_bytes = held.encoder_bytes
    else:
        loading("sources and encoders")
        parts.encoders = Encoders(config.model, parts.device)
        parts.conditioning = partial(condition, Conditioning, config, stdin, parts.kept, parts.encoders)
        parts.prepare(known)
        if not known:
            parts.encoders.load()
        parts.encoder_bytes = parts.encoders.state_bytes(Picture.of(config.model, config.stream))
    parts.weight_bytes += parts.encoders.weight_bytes


def _block(parts: Parts, plan: Plan, block: int, config: Config, loading: Loading, held: Parts | None) -> None:
    layers, picture = plan.blocks[block], Picture.of(config.model, config.stream)
    there = held.denoisers.values() if held else ()
    denoiser = next((one for one in there if tuple(one.network.layers) == tuple(layers)), None)
    if denoiser is None:
        loading(f"layers {layers.start}-{layers.stop - 1}", plan.block_bytes(block))
        denoiser = fast_denoiser(config, parts.device, picture, layers, loading.count)
    parts.denoisers[block] = denoiser
    parts.weight_bytes += parameter_bytes(denoiser.network)


def _decode(parts: Parts, config: Config, loading: Loading, held: Parts | None) -> Decoder | None:
    """Have a decoder; returns it where it was made now."""
    fresh = held is None or held.decoder is None
    if fresh:
        loading("decoder")
        parts.decoder, parts.decoder_bytes = fast_decoder(config, parts.device)
    else:
        parts.decoder, parts.decoder_bytes = held.decoder, held.decoder_bytes
    parts.weight_bytes += parameter_bytes(parts.decoder)
    return parts.decoder if fresh else None


def condition(
    kind: type[Conditioning], config: Config, stdin: BinaryIO | None, kept: Kept, encoders: Encoders, *opening
) -> Conditioning:
    """What drives a stream.

    Args:
        kind: of conditioning.
        kept: what this process keeps of streams.
        opening: the order, the stream's prompts and its stop event.
    """
    order, prompts, stop = opening
    state, journal, ends = order.keep.state if order.keep else None, None, None
    if order.keep and order.keep.journal:
        journal, ends = Journal(order.keep.journal), kept.sources.setdefault(order.stream, LiveEnds())
        ends.forget = partial(kept.sources.pop, order.stream, None)
    return kind(
        config.model, order.config, order.source, encoders, stdin, stop, state,
        sink=order.sink, prompts=prompts, journal=journal, ends=ends,
    )  # fmt: skip
