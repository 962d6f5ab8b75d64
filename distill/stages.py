"""Stages of the recipe: what one training step does, what is kept of it, and which stage it builds on.

teacher   bidirectional flow matching               from random weights
causal    flow matching with a stream's history     from the teacher
ode       few-step regression of ODE end points     from the causal model   (`distill.ode`)
dmd       self-rollout distribution matching        from ode, or causal     (`distill.dmd`)
"""

from __future__ import annotations

from torch import Tensor

from distill import flow
from distill.dmd import Dmd
from distill.model import Batch
from distill.ode import Ode
from distill.sample import whole
from distill.stage import Stage


class Teacher(Stage):
    """Bidirectional flow matching over whole clips."""

    name, causal = "teacher", False

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        chance = self.chance(step)
        batch = flow.drop(self.batch(step), chance, self.settings.dropout)
        return flow.loss(self.student, self.clip, batch, chance, self.shift)

    def sample(self, batch: Batch) -> Tensor:
        noise = self.chance(0, purpose=1).normal(batch.latents.shape)
        steps, guidance = self.settings.sample_steps, self.settings.guidance
        with self.autocast():
            return whole(self.average, self.clip, batch, noise, steps, self.shift, guidance)


class Causal(Stage):
    """Flow matching with the history that a stream will have."""

    name, before = "causal", ("teacher",)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        chance = self.chance(step)
        batch = flow.drop(self.batch(step), chance, self.settings.dropout)
        return flow.loss(self.student, self.clip, batch, chance, self.shift, self.settings.same_level)


def registry() -> dict[str, type[Stage]]:
    """Stages by name, in their order."""
    return {kind.name: kind for kind in (Teacher, Causal, Ode, Dmd)}
