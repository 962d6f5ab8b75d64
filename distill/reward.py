"""Rewards that weigh a clip's distillation gradient: a guard against motion collapse.

Re-DMD (Reward Forcing, arXiv 2512.04678): the matching gradient of clip b counts exp(r_b / beta), without a gradient
through r. Distribution matching prefers the teacher's commonest clips, which move little; where the student's good
movers count more, motion survives. A reward is a function of the student's latents and the data's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.model import Batch

Reward = Callable[[Tensor, Batch], Tensor]
"""(student's latents [B, C, f, h, w], the batch) to [B], higher is better."""

STILL = 1e-3


def motion(x: Tensor, batch: Batch) -> Tensor:
    """0 for a clip that moves as much as the data does on the average, falling with the log of the ratio: [B]."""
    moved = x.detach().diff(dim=2).abs().mean(dim=(1, 2, 3, 4)).clamp(min=STILL)
    usual = batch.latents.diff(dim=2).abs().mean().clamp(min=STILL)
    return -(moved / usual).log().abs()


def weights(rewards: Tensor, beta: float) -> Tensor:
    """exp(r / beta), scaled to a mean of one, so that the learning rate keeps its meaning: [B]."""
    return torch.softmax(rewards / beta, 0) * len(rewards)


REWARDS: dict[str, Reward] = {"motion": motion}
