"""Optimizers, learning rate and the running average of weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from conf.schema.distill import StageConfig
from distill.muon import Muon


def optimizer_of(module: nn.Module, config: StageConfig, lr: float | None = None) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices inside the network.

    What meets latents, words, sound or time (patch embedding, head, tables, conditioning) and every vector stay with
    AdamW, as Muon's authors advise.
    """
    lr = config.lr if lr is None else lr
    inner, outer = [], []
    for name, parameter in module.named_parameters():
        within = ".blocks." in f".{name}" or ".audio_injector." in f".{name}"
        (inner if config.optimizer == "muon" and within and parameter.ndim == 2 else outer).append(parameter)
    betas = tuple(config.betas)
    if config.optimizer == "muon":
        return Muon(inner, outer, lr, betas=betas, weight_decay=config.weight_decay)
    matrices, vectors = [p for p in outer if p.ndim > 1], [p for p in outer if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=betas, weight_decay=config.weight_decay)


def rate(step: int, config: StageConfig, lr: float | None = None) -> float:
    """The learning rate of a step: linearly up over the warm-up, then half a cosine down to `lr_end` of it."""
    lr = config.lr if lr is None else lr
    rising = min(1.0, (step + 1) / max(1, config.warmup))
    progress = min(1.0, step / max(1, config.steps))
    return lr * rising * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put a learning rate in force."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def average(into: nn.Module, module: nn.Module, updates: int, decay: float) -> None:
    """One update of the running average; early on it forgets the random start faster."""
    keep = min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_(list(into.parameters()), list(module.parameters()), 1 - keep)
