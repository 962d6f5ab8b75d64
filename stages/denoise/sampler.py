"""Step lists and update rules of few-step flow matching.

x_t = (1 - sigma) x0 + sigma eps, and the network predicts v = eps - x0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import ModelConfig


def shifted(sigma: float, shift: float) -> float:
    """Timestep shift: k sigma / (1 + (k - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_list(steps: int, shift: float, timesteps: list[float] | None = None) -> list[float]:
    """The S noise levels, falling, and a final 0.

    A given step list is warped: n of 1000 becomes shifted(n / 1000), so Self-Forcing's [1000, 750, 500, 250]
    with shift 5 runs at t = 1000, 937.5, 833.3, 625. Without one, levels are spread evenly from 1 down to the
    shifted minimum shifted(1 / 1000) and then shifted again, as diffusers' `FlowMatchEulerDiscreteScheduler`
    does: Live Avatar's 1, 0.857692, 0.602151, 0.008929 with shift 3.
    """
    if timesteps is not None:
        base = [t / 1000 for t in timesteps]
    else:
        low = shifted(1 / 1000, shift)
        base = [1 - (1 - low) * s / (steps - 1) for s in range(steps)] if steps > 1 else [1.0]
    return [*(shifted(s, shift) for s in base), 0.0]


@dataclass(frozen=True)
class Sampler:
    """A step list with its update rule.

    Attributes:
        rule: `euler` (deterministic) or `renoise` (x0 estimate, then fresh noise of the next level).
        sigmas: S + 1 levels, the last 0.
    """

    rule: str
    sigmas: tuple[float, ...]

    @staticmethod
    def of(model: ModelConfig) -> Sampler:
        return Sampler(model.sampler, tuple(sigma_list(model.step_count, model.shift, model.timesteps)))

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def timestep(self, step: int) -> float:
        """What the network is told, 0 to 1000."""
        return 1000 * self.sigmas[step]

    def needs_noise(self, step: int) -> bool:
        """Whether entering `step` takes a fresh draw: step 0 always, later ones where the rule re-noises."""
        return step == 0 or self.rule == "renoise"

    def clean(self, step: int, x: Tensor, v: Tensor) -> Tensor:
        """The x0 estimate x - sigma v, computed in float64."""
        return (x.double() - self.sigmas[step] * v.double()).to(x.dtype)

    def update(self, step: int, x: Tensor, v: Tensor, noise: Tensor | None = None) -> Tensor:
        """From the input of `step` and the velocity there to the input of the next step, or the final latents.

        Args:
            step: 0 .. S - 1.
            x, v: latents of any shape.
            noise: float32, the draw for step + 1; used by `renoise` before the last step.
        """
        level = self.sigmas[step + 1]
        if self.rule == "euler":
            return (x.float() + (level - self.sigmas[step]) * v.float()).to(x.dtype)
        x0 = self.clean(step, x, v)
        if step + 1 == self.steps:
            return x0
        return ((1 - level) * x0.float() + level * noise.to(x.device)).to(x.dtype)


def zero_timestep() -> Tensor:
    """The timestep of prefill and commit passes, [1, 1]."""
    return torch.zeros(1, 1)
