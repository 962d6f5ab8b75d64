"""Distribution-matching distillation of a self-rollout (DMD, arXiv 2311.18828; arXiv 2506.08009).

The student's clip is noised to a random level; a frozen bidirectional teacher (with guidance) and a trained critic
say what it should be and what it is. Their difference, scaled per sample, is the gradient on the student's clip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError
from conf.schema.distill import DistillConfig
from distill import flow, steering
from distill.clips import Library, codec_half
from distill.model import Batch, Trainee
from distill.optim import average, optimizer_of, rate
from distill.reward import REWARDS, weights
from distill.rollout import ROLLOUTS
from distill.sample import guided
from distill.sharding import Learner
from distill.stage import Stage, frozen

SMALLEST = 0.02
"""Lower bound of the normaliser: on nearly still clips the teacher's error would vanish and the gradient explode."""


def matching_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient on the student's clip: (fake - real) / mean |x - real|, per sample; all [B, C, f, h, w]."""
    scale = (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=SMALLEST)
    return torch.nan_to_num((fake - real) / scale)


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """1/2 mean (x - sg[x - gradient])^2, whose gradient is `gradient` / numel; float64, or the signal drowns."""
    target = (x.double() - gradient.double()).detach()
    return 0.5 * (x.double() - target).square().mean()


class Dmd(Stage):
    """Student, critic and frozen teacher; the critic learns at every step, the student at every `ratio`-th."""

    name, before = "dmd", ("ode", "causal")

    def __init__(self, config: DistillConfig, library: Library):
        super().__init__(config, library)
        rollout = ROLLOUTS[self.settings.rollout]
        self.rollout = rollout(self.model, self.grid, self.settings.frames, self.device)
        self.both_ways = self.clip_of(causal=False)
        self.teacher = self._teacher()
        self.critic = frozen(self.teacher).train().requires_grad_(True)
        optimizer = optimizer_of(self.critic, self.settings, self.settings.critic_lr)
        self.critic_learner = self.learner_of("critic", self.critic, optimizer)
        self.teacher_learner = self.learner_of("teacher", self.teacher, None)
        if self.settings.steering:
            if not self.model.network.actions:
                raise UserError(
                    f"stages.dmd.steering={self.settings.steering}",
                    f"{self.model.name} is not steered by actions",
                    "set it to 0",
                )
            self.decoder = codec_half(config.clips.codec, "decoder", config.clips.kind).to(self.device)

    def _teacher(self) -> Trainee:
        teacher = Trainee(self.model).to(self.device)
        # `init` names the student's beginning; the teacher is always that of this run.
        teacher.load_state_dict(self.stored(("teacher",)))
        return frozen(teacher)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return super().parts() | self.critic_learner.parts("critic", "critic_optimizer")

    def learners(self) -> list[Learner]:
        return [*super().learners(), self.critic_learner]

    def advance(self, step: int) -> dict[str, float]:
        s, chance = self.settings, self.chance(step)
        batch, steps = self.batch(step), self.rollout.sampler.steps
        exit_step = chance.index(steps)
        noise = [chance.normal(batch.latents.shape) for _ in range(steps)]
        learns = step >= s.critic_warmup and step % s.ratio == 0
        numbers: dict[str, Any] = {"lr": rate(step, s)}

        def make() -> tuple[Tensor | None, Tensor, dict[str, float]]:
            with self.autocast():
                x = self.rollout(self.student.network, self.student.encode(batch), noise, exit_step, gradient=learns)
                value, found = self.generator_loss(x, batch, chance) if learns else (None, {})
            return value, x.detach(), found

        def judge() -> Tensor:
            with self.autocast():
                return self.critic_loss(x, batch, chance)

        value, x, found = self.learner.run(make)
        if learns:
            numbers |= found | {"grad_norm": self.learner.descend(value, rate(step, s))}
            with self.learner.whole():
                average(self.average, self.student, step // s.ratio, s.ema)
        value = self.critic_learner.run(judge)
        norm = self.critic_learner.descend(value, rate(step, s, s.critic_lr))
        return numbers | {"critic_loss": value.item(), "critic_grad_norm": norm}

    def _level(self, chance: flow.Chance, batch: int) -> Tensor:
        """Noise levels [batch, 1] at which the clips are judged, one for all frames of a clip."""
        return flow.noise_levels(chance, batch, 1, self.shift).clamp(self.settings.lowest, self.settings.highest)

    def generator_loss(self, x: Tensor, batch: Batch, chance: flow.Chance) -> tuple[Tensor, dict[str, float]]:
        """The matching loss of the student's clips, and of the data's where the forward divergence takes part."""
        sigma = self._level(chance, len(x))
        with torch.no_grad():
            level = flow.per_frame(sigma)
            noisy = flow.add_noise(x, chance.normal(x.shape), level)
            guidance = self.settings.guidance
            score = self.teacher_learner.run(lambda: self._score(self.teacher, noisy, sigma, batch, guidance))
            real = noisy - level * score
            fake = noisy - level * self.critic_learner.run(lambda: self._score(self.critic, noisy, sigma, batch))
            gradient = matching_gradient(x, real, fake) * self._weights(x, batch)
        value = matching_loss(x, gradient)
        numbers = {"loss": value.item(), "gradient": gradient.abs().mean().item()}
        numbers["motion_ratio"] = (x.diff(dim=2).abs().mean() / batch.latents.diff(dim=2).abs().mean()).item()
        if self.settings.forward_kl:
            extra = flow.loss(self.student, self.clip, batch, chance, self.shift)[0]
            value = value + self.settings.forward_kl * extra
            numbers["forward_kl"] = extra.item()
        if self.settings.steering:
            first = chance.index(x.shape[2] - steering.WINDOW + 1)
            extra = steering.steering(self.decoder, x, batch.actions, first)
            value = value + self.settings.steering * extra
            numbers["steering"] = extra.item()
        return value, numbers

    def _weights(self, x: Tensor, batch: Batch) -> Tensor:
        """What each clip's gradient counts, [B, 1, 1, 1, 1]: all the same without a reward."""
        if self.settings.reward is None:
            return torch.ones(len(x), 1, 1, 1, 1, device=x.device)
        return weights(REWARDS[self.settings.reward](x, batch), self.settings.reward_beta)[:, None, None, None, None]

    def _score(self, trainee: Trainee, x: Tensor, sigma: Tensor, batch: Batch, guidance: float = 1.0) -> Tensor:
        return guided(trainee, self.both_ways, x, sigma, batch, guidance)

    def critic_loss(self, x: Tensor, batch: Batch, chance: flow.Chance) -> Tensor:
        """Flow matching on the student's clips: the critic learns what the student makes."""
        sigma, noise = self._level(chance, len(x)), chance.normal(x.shape)
        noisy = flow.add_noise(x, noise, flow.per_frame(sigma))
        v = self.both_ways(self.critic.network, noisy, 1000 * sigma, self.critic.encode(batch))
        return (v - (noise - x)).square().mean()
