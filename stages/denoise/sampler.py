"""Step lists and update rules of few-step flow matching.

x_t = (1 - sigma) x0 + sigma eps, and the network predicts v = eps - x0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import devices
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.inputs import LATENT_FRAMES


def shifted(sigma: float, shift: float) -> float:
    """Timestep shift: k sigma / (1 + (k - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_list(steps: int, shift: float, timesteps: list[float] | None = None) -> list[float]:
    """The S noise levels, falling, and a final 0.

    A given step list is warped: n of 1000 becomes shifted(n / 1000), so [1000, 750, 500, 250] with shift 5 runs at
    t = 1000, 937.5, 833.3, 625 (arXiv 2506.08009). Without one, levels are spread evenly from 1 down to the shifted
    minimum shifted(1 / 1000) and then shifted again, as diffusers' `FlowMatchEulerDiscreteScheduler` does: 1,
    0.857692, 0.602151, 0.008929 with shift 3 (arXiv 2512.04677).
    """
    if timesteps is not None:
        base = [t / 1000 for t in timesteps]
    else:
        low = shifted(1 / 1000, shift)
        base = [1 - (1 - low) * s / (steps - 1) for s in range(steps)] if steps > 1 else [1.0]
    return [*(shifted(s, shift) for s in base), 0.0]


class Step(NamedTuple):
    """A denoising step: three numbers, which one table of noise levels need not give.

    Attributes:
        timestep: what the network is told, 0 to 1000.
        sigma: the noise level by which x0 is told from the velocity.
        renoised: the level to which what enters the step was noised.
    """

    timestep: float
    sigma: float
    renoised: float


def steps_of(model: ModelConfig) -> tuple[Step, ...]:
    """The steps that a model's settings give: one number three times."""
    if not model.warp and model.timesteps is not None:
        return tuple(Step(t, sigma := nearest_sigma(t, model.shift), sigma) for t in model.timesteps)
    sigmas = sigma_list(model.step_count, model.shift, model.timesteps)
    return tuple(Step(1000 * sigma, sigma, sigma) for sigma in sigmas[:-1])


GRID = 1000
"""Noise levels of a scheduler's table."""


def nearest_sigma(timestep: float, shift: float) -> float:
    """The noise level of a timestep, 0 to 1000: that of the nearest of 1000 evenly spread levels that are shifted, as
    StreamDiffusionV2 looks it up. 700 with shift 8 is 0.700232."""
    levels = (shifted(n / GRID, shift) for n in range(GRID, 0, -1))
    return min(levels, key=lambda level: abs(GRID * level - timestep))


@dataclass(frozen=True)
class Sampler:
    """Steps with their update rule.

    Attributes:
        rule: `euler` (deterministic) or `renoise` (x0 estimate, then fresh noise of the next level).
        table: the steps, from noise to clean.
        shift: of the table in which other timesteps are looked up.
    """

    rule: str
    table: tuple[Step, ...]
    shift: float = 1.0

    @staticmethod
    def of(model: ModelConfig, steps: Sequence[Step] | None = None) -> Sampler:
        """A model's; `steps` None: as its settings give them."""
        return Sampler(model.sampler, steps_of(model) if steps is None else tuple(steps), model.shift)

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.table)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the steps, and a final 0."""
        return *(step.sigma for step in self.table), 0.0

    def timestep(self, step: int) -> float:
        """What the network is told, 0 to 1000."""
        return self.table[step].timestep

    def needs_noise(self, step: int) -> bool:
        """Whether entering `step` takes a fresh draw: step 0 always, later ones where the rule re-noises."""
        return step == 0 or self.rule == "renoise"

    def sigma(self, step: int, timestep: float = 0.0) -> float:
        """The noise level by which x0 is told from the velocity; of another timestep than the step's, the level that a
        scheduler's table has for it."""
        return nearest_sigma(timestep, self.shift) if timestep else self.table[step].sigma

    def clean(self, step: int, x: Tensor, v: Tensor, timestep: float = 0.0) -> Tensor:
        """The x0 estimate x - sigma v, computed in float64."""
        return (x.double() - self.sigma(step, timestep) * v.double()).to(x.dtype)

    def update(self, step: int, x: Tensor, v: Tensor, noise: Tensor | None = None, timestep: float = 0.0) -> Tensor:
        """From the input of `step` and the velocity there to the input of the next step, or the final latents.

        Args:
            step: 0 .. S - 1.
            x, v: latents of any shape.
            noise: float32, the draw for step + 1; used by `renoise` before the last step.
            timestep: that the network was told instead of the step's; 0: it was not.
        """
        last = step + 1 == self.steps
        level = 0.0 if last else self.table[step + 1].renoised
        if self.rule == "euler":
            return (x.float() + (level - self.sigma(step, timestep)) * v.float()).to(x.dtype)
        x0 = self.clean(step, x, v, timestep)
        if last:
            return x0
        return ((1 - level) * x0.float() + level * devices.of(x.device).upload(noise)).to(x.dtype)

    def advance(
        self, steps: range, frames: int, x: Tensor, v: Tensor, noise: Callable[[int, int], Tensor | None],
        timestep: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """As `update`, for chunks that are denoised together.

        Args:
            steps: of the chunks in the pass (`Schedule.together`), in order.
            frames: latent frames of a chunk.
            x: latents of these chunks, and of more behind them, which stay as they are.
            v: velocity of the chunks in the pass.
            noise: (which of the chunks, step) -> the draw with which it enters the step.
            timestep: that the network was told instead of the first chunk's step's; 0: it was not.
        """
        if len(steps) == 1 and x.shape == v.shape:
            return self.update(steps[0], x, v, self._drawn(0, steps[0] + 1, noise), timestep)
        chunks = []
        for i, step in enumerate(steps):
            at = slice(i * frames, (i + 1) * frames)
            drawn = self._drawn(i, step + 1, noise)
            chunks.append(self.update(step, x[:, :, at], v[:, :, at], drawn))
        return torch.cat([*chunks, x[:, :, len(steps) * frames :]], LATENT_FRAMES)

    def _drawn(self, chunk: int, step: int, noise: Callable[[int, int], Tensor | None]) -> Tensor | None:
        return noise(chunk, step) if step < self.steps and self.needs_noise(step) else None


def finite_steps(x: Tensor, before: Tensor | int = 0) -> Tensor:
    """How many steps have left latents finite, int64 [] on their device, so that no step waits for the host.

    What is not finite stays so, so of a chunk that ended otherwise it is the number of the first step that did not.

    Args:
        x: what a step has left.
        before: the same of the step before.
    """
    # What is not a number is the smallest and the largest: one pass over the latents, 25 times as fast as asking each.
    low, high = torch.aminmax(x)
    return (low.isfinite() & high.isfinite()) + before


def require_finite_steps(found: Tensor, steps: int, chunk: int) -> None:
    """Refuse a chunk whose latents are not finite; waits for the device.

    Args:
        found: `finite_steps` of the last of `steps`.

    Raises:
        UserError: names the step.
    """
    if (step := int(found)) < steps:
        raise UserError(
            f"step{step} of chunk {chunk}",
            "left latents that are not finite (NaN or infinity)",
            "of model.dtype=float16, try bfloat16; else look at model.checkpoint, model.lora, source.tensors and "
            "source.camera",
        )


def zero_timestep() -> Tensor:
    """The timestep of prefill and commit passes, [1, 1]."""
    return torch.zeros(1, 1)
