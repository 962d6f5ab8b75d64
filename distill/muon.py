"""Muon: momentum whose update is made orthogonal, matrix by matrix; AdamW for everything that is no matrix.

A plain gradient step mostly moves a few strong directions of a weight matrix. Replacing the momentum by its nearest
semi-orthogonal matrix (five Newton-Schulz iterations, no decomposition) moves all directions alike, which takes a
fraction of AdamW's steps on small networks. Updates are scaled to the usual size of AdamW's, so one learning rate
and one schedule serve both.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distill.precision import bfloat16_pays

# Coefficients of Jordan et al.: steep at zero, so that small singular values grow fast; exact ones are not needed.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """[rows, columns] to about its nearest semi-orthogonal matrix, computed in bfloat16 where that is faster."""
    a, b, c = QUINTIC
    x = matrix.bfloat16() if bfloat16_pays(matrix.device.type) else matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two or more dimensions that `matrices` names, AdamW for the rest.

    Convolution kernels are taken as [out, in * height * width]. As with AdamW, `lr` may be set per step in every
    group of `param_groups`.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._muon if group["muon"] else self._adam
                    parameter.sub_(update(parameter, group), alpha=group["lr"])

    def _muon(self, parameter: nn.Parameter, group: dict) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
        # An orthogonal [m, n] has elements of size 1 / sqrt(max(m, n)); AdamW's updates are about 0.2.
        return (orthogonal(ahead) * (0.2 * max(ahead.shape) ** 0.5)).view_as(parameter)

    def _adam(self, parameter: nn.Parameter, group: dict) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"] = 0
            state["first"], state["second"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        low, high = group["betas"]
        state["first"].lerp_(gradient, 1 - low)
        state["second"].lerp_(gradient.square(), 1 - high)
        size = (state["second"] / (1 - high ** state["step"])).sqrt_().add_(1e-8)
        return state["first"] / (1 - low ** state["step"]) / size
