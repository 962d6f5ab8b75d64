"""Flow matching on clips, bidirectional and causal.

x = (1 - sigma) x0 + sigma eps, v = eps - x0 (rectified flow, Liu et al., arXiv 2209.03003), the loss is the mean
squared error of v. Every random number is a pure function of (seed, step): a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.clip import WholeClip
from distill.model import Batch, Trainee
from stages.denoise.sampler import shifted


class Chance:
    """The random numbers of one training step: drawn on the CPU, so that every device gets the same.

    Args:
        seed, step, purpose: what they are a function of.
        device: where they are used.
        salt: which of several processes draws for its part of a batch; what decides the course of a step (`index`,
            `coin`) is the same for all of them.
    """

    def __init__(
        self, seed: int, step: int, purpose: int = 0, device: torch.device | str = "cpu", salt: int | None = None
    ):
        self.device = device
        key = (seed * 1_000_003 + step) * 31 + purpose
        self._course = self.generator = torch.Generator().manual_seed(key)
        if salt is not None:
            self.generator = torch.Generator().manual_seed(key + (salt + 1) * 0x9E3779B97F4A)

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        return torch.rand(shape, generator=self.generator).to(self.device)

    def normal(self, shape) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator).to(self.device)

    def spread(self, count: int) -> Tensor:
        """`count` numbers in [0, 1), one in each of as many equal parts, in random order: less noise in the loss."""
        order = torch.randperm(count, generator=self.generator).to(self.device)
        return (order + self.uniform(count)) / count

    def index(self, count: int) -> int:
        """One of 0 ... count - 1."""
        return int(torch.randint(count, (1,), generator=self._course))

    def coin(self) -> float:
        """In [0, 1), the same in every process."""
        return float(torch.rand((1,), generator=self._course))


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """(1 - sigma) x0 + sigma eps."""
    return (1 - sigma) * clean + sigma * noise


def per_frame(values: Tensor, chunk_frames: int = 1) -> Tensor:
    """Levels [B, n] of clips (n = 1) or of chunks to [B, 1, n * chunk_frames or 1, 1, 1], to go with latents."""
    if values.shape[1] > 1:
        values = values.repeat_interleave(chunk_frames, dim=1)
    return values[:, None, :, None, None]


def drop(batch: Batch, chance: Chance, share: float) -> Batch:
    """Classifier-free guidance's dropout: text, control and reference each, and all of it, for a `share` of samples."""
    if share <= 0:
        return batch
    everything, text, control, reference = chance.uniform(4, len(batch)) < share
    return batch.dropped(text | everything, control | everything, reference & ~everything)


def noise_levels(chance: Chance, batch: int, chunks: int, shift: float) -> Tensor:
    """Sigmas [batch, chunks], uniform before the shift."""
    return shifted(chance.spread(batch * chunks), shift).view(batch, chunks)


def loss(
    trainee: Trainee,
    clip: WholeClip,
    batch: Batch,
    chance: Chance,
    shift: float,
    same_level: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of the velocity, and what to log of it.

    Args:
        trainee: network and encoders.
        clip: the attention of the clips, bidirectional or causal.
        batch: clips, already dropped out.
        chance: this step's random numbers.
        shift: of the noise levels.
        same_level: chance that all chunks of a clip share one level, as the banks of `same_level` have it (every bank
            holds one level); else each draws its own (diffusion forcing, Chen et al., arXiv 2407.01392).
    """
    c = clip.model.chunk_frames
    together = not clip.causal or chance.coin() < same_level
    count = 1 if together else clip.frames // c
    sigma = noise_levels(chance, len(batch), count, shift)
    noise = chance.normal(batch.latents.shape)
    x = add_noise(batch.latents, noise, per_frame(sigma, c))
    timesteps = 1000 * (sigma if together else sigma.repeat_interleave(c, dim=1))
    v = clip(trainee.network, x, timesteps, trainee.encode(batch), clean=batch.latents)
    error = (v - (noise - batch.latents)).square()
    value = error.mean()
    with torch.no_grad():
        # By noise level, to compare runs and stages at equal difficulty.
        levels = per_frame(sigma, c).expand(-1, 1, error.shape[2], 1, 1)
        parts = error.mean(dim=(1, 3, 4), keepdim=True)
        thirds = {}
        for third, lo, hi in (("low", 0, 0.5), ("mid", 0.5, 0.8), ("high", 0.8, 1.01)):
            within = parts[(levels >= lo) & (levels < hi)]
            if len(within):
                thirds[f"loss_{third}"] = within.mean().item()
    name = "loss_same_level" if together else "loss_diffusion_forcing"
    return value, {**thirds, **({name: value.item()} if clip.causal else {})}
