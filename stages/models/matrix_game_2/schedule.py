"""Steps as the published loop has them, in float32 throughout."""

from __future__ import annotations

from dataclasses import replace

import torch

from conf.schema import ModelConfig
from stages.denoise.sampler import GRID, Step
from stages.denoise.schedule import Schedule, configured


def schedule(model: ModelConfig) -> Schedule:
    """The configuration's. A step k of its list is the level of the shifted table that k of 1000 was before the shift,
    and the network is told 1000 times that level, which is rounded to float32 and no further."""
    levels = torch.linspace(1, 0, GRID + 1)
    levels = model.shift * levels / (1 + (model.shift - 1) * levels)
    chosen = levels[[GRID - int(k) for k in model.timesteps]]
    pairs = zip((GRID * chosen).tolist(), chosen.tolist(), strict=True)
    return replace(configured(model), steps=tuple(Step(timestep, sigma, sigma) for timestep, sigma in pairs))
