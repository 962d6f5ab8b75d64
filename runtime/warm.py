"""First passes before the first stream: what is compiled when it is first called, or recorded when it is called again,
is called while a worker loads.

A pass over another number of tokens is compiled anew: those of a reference, of a chunk, and of the chunks that a new
prompt runs again. A pass that reads or writes other slots is recorded anew. A decoder's first two latent frames of a
stream take other ways than all later ones. What comes out means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

import devices
from conf.schema import ModelConfig
from runtime.pool import BankPool
from stages.codec.base import Decoder
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.finished import Finished
from stages.denoise.share import Ulysses
from stages.inputs import Axis, Given, Input, inputs_of, on, with_chunk

DECODED = 2
"""Chunks that a decoder is warmed with."""


def warm_block(pool: BankPool) -> None:
    """Run a block's passes over its pool's banks, all levels, and give them back.

    What is compiled serves all banks and slots. What is recorded does not, and is recorded where it comes again: every
    chunk of other slots runs twice over the first set of banks, and once, which records it, over each other set.

    Processes that share passes are not connected yet, and record none. Each compiles its part by itself.
    """
    denoiser, schedule, shared = pool.denoiser, pool.denoiser.schedule, (pool.parts or 1) > 1
    distinct = denoiser.history.distinct
    records = denoiser.records and not shared
    sets = [pool.take() for _ in range(pool.allocated if records else 1)]
    with _by_itself(denoiser, pool.parts) if shared else nullcontext():
        drive(pool, sets[0], distinct if records else range(1 + schedule.recache_chunks), recaches=True)
    for banks in sets if records else ():
        drive(pool, banks, distinct)
    for banks in sets:
        pool.give(banks)
    devices.of(denoiser.network.device).synchronize()


def drive(pool: BankPool, banks: StreamBanks, chunks: range, recaches: bool = False) -> None:
    """Begin a stream of zeros, and run every step and commit of some chunks.

    Args:
        banks: of the pool.
        chunks: from the first.
        recaches: whether new prompts come, too, after every number of chunks that one runs again.
    """
    banks.clear()
    denoiser, schedule, inputs = pool.denoiser, pool.denoiser.schedule, inputs_of(pool.denoiser.model)
    if epoch := on(inputs, Axis.EPOCH):
        denoiser.set_states(banks, {one.name: torch.zeros(one.full()) for one in epoch})
    if sink := on(inputs, Axis.SINK):
        denoiser.prefill(banks, _sink(pool, sink))
    types = {True: denoiser.network.dtype, False: torch.float32}
    given = {
        one.name: torch.zeros(one.full(denoiser.grid), dtype=types[one.narrow])
        for one in with_chunk(inputs)
        if one.made
    }
    finished = Finished(schedule.recache_chunks, with_chunk(inputs))
    c = denoiser.model.chunk_frames
    for chunk in chunks:
        if recaches and 0 < chunk <= schedule.recache_chunks:
            again = schedule.recached(chunk)
            _, past = finished.joined(again)
            denoiser.recache(banks, chunk, _entering(pool, len(again) * denoiser.model.chunk_frames), past)
        for step in range(schedule.first_step(chunk), denoiser.sampler.steps):
            if denoiser.level(step) in banks.banks:
                frames = len(denoiser.model.frames(chunk)) + (len(schedule.together(step)) - 1) * c
                denoiser.step(banks, step, chunk, _entering(pool, frames), given)
        if schedule.commits(chunk):
            denoiser.commit(banks, chunk, _entering(pool, len(denoiser.model.frames(chunk))), given)
        finished.add(chunk, None, given)


class _Alone:
    """An exchange with nobody: what goes to others comes back as if from them. Shapes are all that a compiler needs."""

    rank = 0

    def __init__(self, size: int):
        self.size = size

    def all_to_all(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x.expand(self.size, *x.shape)


@contextmanager
def _by_itself(denoiser: Denoiser, parts: int) -> Iterator[None]:
    """Have a denoiser compute one of `parts` parts of its passes, without those who compute the others."""
    share, denoiser.share = denoiser.share, Ulysses(_Alone(parts))
    try:
        yield
    finally:
        denoiser.share = share


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
