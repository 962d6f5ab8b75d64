"""First passes before the first stream: what is compiled when it is first called is called while a worker loads.

A pass over another number of tokens is compiled anew, and there are two: those of a reference and those of a chunk. A
decoder's first two latent frames of a stream take other ways than all later ones. What comes out means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.schema import ModelConfig
from runtime.pool import BankPool
from stages.codec.base import Decoder
from stages.inputs import Axis, Given, Input, inputs_of, on, with_chunk

DECODED = 2
"""Chunks that a decoder is warmed with."""


def warm_block(pool: BankPool) -> None:
    """Run a block's passes over one set of its pool's banks, all levels, and give them back.

    Of processes that share passes none can do so alone: there the first chunk warms them.
    """
    denoiser, model = pool.denoiser, pool.denoiser.model
    if pool.parts not in (None, 1):
        return
    banks = pool.take()
    inputs = inputs_of(model)
    if epoch := on(inputs, Axis.EPOCH):
        denoiser.set_states(banks, {one.name: torch.zeros(one.full()) for one in epoch})
    if sink := on(inputs, Axis.SINK):
        denoiser.prefill(banks, _sink(pool, sink))
    given = {one.name: torch.zeros(one.full(denoiser.grid)) for one in with_chunk(inputs) if one.source}
    x = _entering(pool, model.chunk_frames)
    for step in range(denoiser.sampler.steps):
        if denoiser.level(step) in banks.banks:
            denoiser.step(banks, step, 0, x, given)
    if denoiser.schedule.commits(0):
        denoiser.commit(banks, 0, x, given)
    pool.give(banks)


def warm_decoder(decoder: Decoder, model: ModelConfig, latent: tuple[int, int]) -> None:
    """Decode a few chunks of zeros; `latent` is their height and width."""
    weight = next(decoder.parameters())
    shape = (1, model.network.in_channels, model.chunk_frames, *latent)
    state = decoder.start()
    with torch.inference_mode():
        for _ in range(DECODED):
            decoder(torch.zeros(shape, dtype=weight.dtype, device=weight.device), state)


def _entering(pool: BankPool, frames: int, fixed: int = 0) -> Tensor:
    """Zeros in the shape of latents, or of the hidden states that a later block takes in."""
    denoiser, network = pool.denoiser, pool.denoiser.network
    config, layout = denoiser.model.network, denoiser.layout
    if network.first:
        shape = (1, config.in_channels, frames, *denoiser.grid)
    else:
        shape = (1, frames * layout.tokens + fixed, config.dim)
    return torch.zeros(shape, dtype=network.dtype, device=network.device)


def _sink(pool: BankPool, inputs: tuple[Input, ...]) -> Given | Tensor:
    """Zeros in the shape of the attention sink's inputs, or of hidden states of them."""
    denoiser = pool.denoiser
    if not denoiser.network.first:
        return _entering(pool, 1, denoiser.layout.fixed)
    before = denoiser.model.network.before
    return {one.name: torch.zeros(one.full(denoiser.grid, before)) for one in inputs}
