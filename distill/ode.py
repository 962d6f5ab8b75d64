"""Few-step initialisation: the student learns to reach the end of the causal model's ODE in one leap from any step.

The causal model is integrated over whole clips with all chunks at one level. Chunk i then depends on the noise of
chunks 0 ... i alone, which the student sees too, so the end point is a function of what it knows: regression on it
does not blur (the trouble with trajectories of a bidirectional teacher).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conf.schema import ModelConfig
from conf.schema.distill import DistillConfig
from distill import flow
from distill.clip import frames_of
from distill.clips import Library
from distill.model import Batch, Trainee
from distill.rollout import SameLevel
from distill.stage import Stage, frozen
from stages.denoise.sampler import Sampler

SALT = 0x0DE
"""Makes the prompts and references of trajectories, in place of a step's number."""


def refined(model: ModelConfig, steps: int) -> list[list[float]]:
    """The student's levels with about `steps` Euler steps between them: one falling list per student step."""
    sigmas = Sampler.of(model).sigmas
    parts = []
    for high, low in pairwise(sigmas):
        count = max(1, round(steps * (high - low)))
        parts.append([high + (low - high) * i / count for i in range(count + 1)])
    return parts


@torch.no_grad()
def trajectory(trainee: Trainee, rollout: SameLevel, batch: Batch, noise: Tensor, parts: list[list[float]]) -> Tensor:
    """States at every student level and the end, [B, S + 1, C, f, h, w], of the causal model's ODE."""
    given = trainee.encode(batch)

    def integrate(clip, x: Tensor, conditioning, clean: Tensor | None) -> list[Tensor]:
        states = [x]
        for levels in parts:
            for sigma, after in pairwise(levels):
                time = torch.full((len(x), 1), 1000 * sigma, device=x.device)
                x = x + (after - sigma) * clip(trainee.network, x, time, conditioning, clean)
            states.append(x)
        return states

    clean = None
    if rollout.first is not None:
        first = noise[:, :, : rollout.sink]
        clean = integrate(rollout.first, first, frames_of(given, range(rollout.sink)), torch.zeros_like(first))[-1]
    return torch.stack(integrate(rollout.body, noise, given, clean), dim=1)


class Ode(Stage):
    """Regression on ODE end points (CausVid, arXiv 2412.07772), from trajectories that are made once and stored."""

    name, before, shards = "ode", ("causal",), False

    def __init__(self, config: DistillConfig, library: Library):
        super().__init__(config, library)
        self.rollout = SameLevel(self.model, self.grid, self.settings.frames, self.device)
        self.guide = frozen(self.student)
        self.sigmas = torch.tensor(self.rollout.sampler.sigmas[:-1])
        latent = library.arrays["latents"].shape[1:]
        self.count = min(self.settings.trajectories, config.clips.count)
        shape = (self.count, len(self.sigmas) + 1, latent[0], self.settings.frames, *latent[2:])
        folder = Path(config.run_dir) / self.name
        folder.mkdir(parents=True, exist_ok=True)
        self._known, path = folder / "trajectories.json", folder / "trajectories.npy"
        about = {"weights": self.guide.fingerprint(), "library": library.folder.name, "shape": list(shape)}
        if not (path.exists() and self._read() | {"made": 0} == about | {"made": 0}):
            np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
            self._known.write_text(json.dumps(about | {"made": 0}))
        self.states = np.load(path, mmap_mode="r+")

    def _read(self) -> dict:
        return json.loads(self._known.read_text()) if self._known.exists() else {}

    def _conditioning(self, numbers: np.ndarray) -> Batch:
        return self.library.take(numbers, self.settings.frames, SALT).to(self.device)

    def prepare(self) -> Iterator[tuple[int, int]]:
        parts, about = refined(self.model, self.settings.ode_steps), self._read()
        while (made := about["made"]) < self.count:
            numbers = np.arange(made, min(made + self.settings.batch, self.count))
            shape = self.states.shape[2:]
            noise = torch.stack([self.chance(int(n), purpose=2).normal(shape) for n in numbers])
            with self.autocast():
                found = trajectory(self.guide, self.rollout, self._conditioning(numbers), noise, parts)
            self.states[numbers] = found.cpu().numpy().astype(np.float16)
            about["made"] = int(numbers[-1]) + 1
            self._known.write_text(json.dumps(about))
            yield about["made"], self.count

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        chance = self.chance(step)
        size = self.settings.batch
        numbers = torch.randint(self.count, (size,), generator=chance.generator).numpy()
        # In proportion to the noise: near the end there is little left to learn.
        levels = torch.multinomial(self.sigmas, size, replacement=True, generator=chance.generator)
        states = torch.from_numpy(self.states[numbers]).float().to(self.device)
        x, end = states[torch.arange(size), levels], states[:, -1]
        sigma = self.sigmas[levels][:, None].to(self.device)
        given = self.student.encode(self._conditioning(numbers))
        v = self.clip(self.student.network, x, 1000 * sigma, given, clean=end)
        error = (x - flow.per_frame(sigma) * v - end).square()
        by_level = error.detach().mean(dim=(1, 2, 3, 4))
        steps = {f"loss_step{s}": by_level[levels == s].mean().item() for s in levels.unique().tolist()}
        return error.mean(), steps
