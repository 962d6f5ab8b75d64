"""The optimiser: orthogonal updates, and a small problem solved."""

import torch
from torch import nn

from distill.muon import Muon, orthogonal


def test_updates_are_about_orthogonal():
    for shape in ((24, 60), (60, 24)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.5 and values.max() < 1.3


def test_it_minimises_and_restores():
    torch.manual_seed(0)
    layer, target = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(4, 8, 6, 6)
    optimizer = Muon([layer.weight], [layer.bias], lr=2e-2)

    def loss():
        return (layer(x) - target(x).detach()).square().mean()

    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.1 * first
    copy = Muon([layer.weight], [layer.bias], lr=1e-3)
    copy.load_state_dict(optimizer.state_dict())
    assert torch.equal(copy.state[layer.weight]["momentum"], optimizer.state[layer.weight]["momentum"])
    assert copy.state[layer.bias]["step"] == 60
