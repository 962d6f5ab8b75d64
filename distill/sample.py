"""Samples of what is being trained, and numbers and pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conf.schema import ModelConfig
from distill.clip import WholeClip
from distill.model import Batch, Trainee
from stages.denoise.denoiser import Denoiser
from stages.denoise.draws import Draws
from stages.denoise.sampler import sigma_list
from stages.inputs import REFERENCE


def guided(trainee: Trainee, clip: WholeClip, x: Tensor, sigma: Tensor, batch: Batch, guidance: float) -> Tensor:
    """Velocity u + guidance (c - u) at a noise level [B, 1] per clip, all frames at once."""
    time = 1000 * sigma
    v = clip(trainee.network, x, time, trainee.encode(batch), clean=batch.latents)
    if guidance == 1.0:
        return v
    u = clip(trainee.network, x, time, trainee.encode(batch.unconditional()), clean=batch.latents)
    return u + guidance * (v - u)


@torch.no_grad()
def whole(
    trainee: Trainee, clip: WholeClip, batch: Batch, noise: Tensor, steps: int, shift: float, guidance: float = 1.0
) -> Tensor:
    """Latents by Euler's method over whole clips: how a bidirectional teacher samples."""
    levels = sigma_list(steps, shift, [1000 * (1 - i / steps) for i in range(steps)])
    x = noise
    for sigma, after in pairwise(levels):
        x = x + (after - sigma) * guided(
            trainee, clip, x, torch.full((len(x), 1), sigma, device=x.device), batch, guidance
        )
    return x


@torch.no_grad()
def stream(trainee: Trainee, model: ModelConfig, batch: Batch, chunks: int, seed: int = 0) -> Tensor:
    """Latents [B, C, f, h, w] chunk by chunk through banks, with the model's sampler: how a student streams."""
    rows, columns = batch.latents.shape[-2] // model.network.patch[1], batch.latents.shape[-1] // model.network.patch[2]
    # A copy: preparing a network for inference rearranges its weights.
    denoiser = Denoiser(model, deepcopy(trainee.network).eval(), rows, columns)
    given = trainee.encode(batch)
    out = []
    for b in range(len(batch)):
        draws, banks = Draws(seed, str(b)), denoiser.open()
        denoiser.set_states(banks, {"text": given.text[b : b + 1]})
        if given.reference is not None:
            denoiser.prefill(banks, {REFERENCE: given.reference[b : b + 1]})
        out.append(torch.cat([_chunk(denoiser, banks, draws, i, b, given, batch) for i in range(chunks)], dim=2))
    return torch.cat(out)


def _chunk(denoiser: Denoiser, banks, draws: Draws, chunk: int, b: int, given, batch: Batch) -> Tensor:
    model, sampler, c = denoiser.model, denoiser.sampler, denoiser.model.chunk_frames
    frames = slice(chunk * c, (chunk + 1) * c)
    every = {"audio": given.audio, "actions": given.actions}
    own = {name: tensor[b : b + 1, frames] for name, tensor in every.items() if tensor is not None}
    shape = (1, batch.latents.shape[1], c, *batch.latents.shape[-2:])
    x, distance = draws.noise(chunk, 0, shape).to(denoiser.network.device), model.sink_shift.distance_min
    for step in range(sampler.steps):
        v = denoiser.step(banks, step, chunk, x, own, distance)
        after = step + 1
        fresh = draws.noise(chunk, after, shape) if after < sampler.steps and sampler.needs_noise(after) else None
        x = sampler.update(step, x, v, fresh)
    if denoiser.schedule.commits(chunk):
        denoiser.commit(banks, chunk, x, own, distance)
    return x


def motion(latents: Tensor) -> float:
    """Mean absolute difference of successive latent frames: a collapse to stills shows as a fall of this."""
    return latents.float().diff(dim=2).abs().mean().item()


@torch.no_grad()
def decode(decoder, latents: Tensor) -> Tensor:
    """Latents [B, C, f, h, w] to video in [-1, 1], [B, 3, 4 f, H, W]."""
    return torch.cat([decoder(latent[None].float().cpu(), decoder.start()) for latent in latents])


def statistics(made: Tensor, real: Tensor, video: Tensor, real_video: Tensor) -> dict[str, float]:
    """Motion of samples relative to the data's, and how far latents' means and spreads are off."""
    return {
        "motion_ratio": motion(made) / motion(real),
        "pixel_motion_ratio": motion(video) / motion(real_video),
        "latent_std_ratio": (made.std() / real.std()).item(),
        "error": (made - real).abs().mean().item(),
        "pixel_error": (video - real_video).abs().mean().item(),
    }


def strip(path: str | Path, videos: Sequence[Tensor], every: int = 4, scale: int = 1) -> None:
    """A PNG: clips of each of the videos [B, 3, n, H, W] below each other, every so many frames from left to right."""
    from PIL import Image

    rows = [torch.cat(list(v[:, ::every].unbind(1)), dim=2) for clips in zip(*videos, strict=True) for v in clips]
    picture = torch.cat(rows, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    if scale > 1:
        picture = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
