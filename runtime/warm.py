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
from stages.denoise.denoiser import ChunkConditioning
from stages.denoise.frame_pack import FRAMES as MOTION_FRAMES

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
    denoiser.set_text(banks, torch.zeros(1, 1, model.network.text_dim))
    if model.reference:
        denoiser.prefill(banks, _entering(pool, 1, reference=True))
    x, given = _entering(pool, model.chunk_frames), _conditioning(model)
    for step in range(denoiser.sampler.steps):
        if denoiser.level(step) in banks.banks:
            denoiser.step(banks, step, 0, x, given)
    if denoiser.commits(0):
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


def _entering(pool: BankPool, frames: int, reference: bool = False) -> Tensor:
    """Zeros in the shape of latents, or of the hidden states that a later block takes in."""
    denoiser, network = pool.denoiser, pool.denoiser.network
    config, layout = denoiser.model.network, denoiser.layout
    if not network.first:
        tokens = frames * layout.tokens + layout.motion * reference
        return torch.zeros(1, tokens, config.dim, dtype=network.dtype, device=network.device)
    frames += MOTION_FRAMES * bool(reference and config.frame_pack)
    shape = (1, config.in_channels, frames, *denoiser.grid)
    return torch.zeros(shape, dtype=network.dtype, device=network.device)


def _conditioning(model: ModelConfig) -> ChunkConditioning:
    """A chunk's, all zeros: as much as the model takes."""
    network, c = model.network, model.chunk_frames
    audio = torch.zeros(1, c, network.audio.tokens, network.audio_dim) if network.audio else None
    actions = torch.zeros(1, c, 4 * len(network.actions)) if network.actions else None
    return ChunkConditioning(audio, actions)
