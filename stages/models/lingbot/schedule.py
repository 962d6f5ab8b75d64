"""Steps of a table of 1000 noise levels whose timesteps are whole numbers.

Level i is that of s = 0.999 (1 - i / 1000), shifted: k s / (1 + (k - 1) s). The network is told t, 1000 times the level
without its fraction. Near the top several levels have one t, and what a step does with t finds two of them: x0 is told
from the velocity by the first that has it, and what enters the step was noised to the second.
"""

from __future__ import annotations

from dataclasses import replace

from conf.schema import ModelConfig
from stages.denoise.sampler import GRID, Step, shifted
from stages.denoise.schedule import Schedule, configured

HIGHEST = 0.999
"""The first level before the shift."""


def table(shift: float) -> list[float]:
    """The noise levels, falling."""
    return [shifted(HIGHEST * (GRID - i) / GRID, shift) for i in range(GRID)]


def step(index: int, shift: float) -> Step:
    """The step that begins at a level of the table."""
    levels = table(shift)
    timestep = int(GRID * levels[index])
    first, *others = (level for level in levels if int(GRID * level) == timestep)
    return Step(float(timestep), first, others[0] if others else first)


def schedule(model: ModelConfig) -> Schedule:
    """The configuration's, with these steps: `model.timesteps` counts levels from the end, so 1000 is the first."""
    return replace(configured(model), steps=tuple(step(GRID - int(t), model.shift) for t in model.timesteps))
