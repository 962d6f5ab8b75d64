"""How the camera of a maze moved from one frame to the next, read from the two pictures alone.

Five explanations compete: it stood still, turned left or right by `maze.TURN`, or went forward or back by `maze.STEP`.
Each predicts the later picture from the earlier one by the geometry of `distill.data.world` (field of view, eye in the
middle of walls of height 1); the one that leaves least unexplained wins. A turn needs no depth. For a step the floor's
depth follows from its row, and the wall's is found column by column: the one that explains the column best. A walker
that meets a wall at an angle slides along it, so steps with a part to the side are tried too; a slide of less than
half a step counts as standing still, as it does in `maze.move`.

Nothing is learned; the few constants were set by hand, on renders of training mazes and on what the codec makes of
them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.maze import BACK, FORWARD, LEFT, NONE, RIGHT, STEP, TURN
from distill.data.world import FAR, SPREAD

# Wall depths tried in a column, evenly spread in how high the wall stands in the picture.
DEPTHS = 0.5 / SPREAD / np.linspace(0.5 / SPREAD / FAR, 2.6, 16)
# Steps tried, ahead and aside in shares of a whole one. A walker whose way is at an angle a to the wall keeps cos(a) of
# a step, cos(a)^2 ahead and cos(a) sin(a) aside.
SLIDES = ((1.0, 0.0), (0.75, 0.433), (0.75, -0.433), (0.5, 0.5), (0.5, -0.5), (0.32, 0.466), (0.32, -0.466))
SLOW = ((0.2, 0.4), (0.2, -0.4), (0.08, 0.27), (0.08, -0.27), (0.01, 0.1), (0.01, -0.1))
# What a step, and a slide slower than half a step, must explain better by than a turn or none, as a share of the change
# between the frames: they may choose their depths.
COST, SLOW_COST = 0.16, 0.25
# Neighbouring columns, mostly of one wall, choose their depth together.
WALL = 15
TOGETHER = 32


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of pixel centres, -1 ... 1, each [size, size] float64."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    return centres[None].expand(size, size), centres[:, None].expand(size, size)


def _turned(size: int, angle: float) -> Tensor:
    """Where each pixel of the later picture was before a turn by `angle` to the left: [size, size, 2]."""
    column, row = _grid(size)
    now = torch.atan(column * SPREAD)
    before = now - angle
    # Rows scale with one over the depth along the axis, which a turn changes.
    return torch.stack([torch.tan(before) / SPREAD, row * torch.cos(now) / torch.cos(before)], -1)


def _stepped(size: int, ahead: float, aside: float, depth: float) -> Tensor:
    """As `_turned`, for a step `ahead` and `aside` (to the right), where the wall in every column stands at `depth`."""
    column, row = _grid(size)
    ground = torch.where(row > 0, 0.5 / (SPREAD * row.abs()), torch.full_like(row, torch.inf))
    far = torch.where(row.abs() < 0.5 / (SPREAD * depth), torch.full_like(row, depth), ground)
    share = torch.where(far.isinf(), torch.ones_like(far), far / (far + ahead).clamp(min=0.05))
    shift = torch.where(far.isinf(), torch.zeros_like(far), aside / SPREAD / (far + ahead).clamp(min=0.05))
    return torch.stack([column * share + shift, row * share], -1)


@cache
def _maps(size: int) -> dict[str, Tensor]:
    """Sampling grids [explanations, size, size, 2]: two turns, and every slide at every depth, both ways."""
    turns = torch.stack([_turned(size, TURN), _turned(size, -TURN)])
    steps = [
        _stepped(size, sign * STEP * ahead, sign * STEP * aside, depth)
        for sign in (1, -1)
        for ahead, aside in SLIDES + SLOW
        for depth in DEPTHS
    ]
    return {"turns": turns.float(), "steps": torch.stack(steps).float()}


def _errors(before: Tensor, after: Tensor, maps: Tensor) -> Tensor:
    """Mean absolute error [n, explanations, columns] of predicting `after` from `before` [n, 3, H, W]."""
    out = []
    for where in maps:
        grid = where[None].expand(len(before), -1, -1, -1)
        made = F.grid_sample(before, grid, align_corners=False, padding_mode="border")
        # What came in from outside the picture cannot be predicted.
        seen = (where.abs() <= 1).all(-1)
        error = (made - after).abs().mean(1) * seen
        out.append(error.sum(1) / seen.sum(0).clamp(min=1))
    return torch.stack(out, 1)


@torch.inference_mode()
def explained(frames: np.ndarray) -> np.ndarray:
    """What each explanation leaves unexplained between successive frames uint8 [n, H, W, 3]: [n - 1, 5], 0 ... 255.

    The order is that of `maze.ACTIONS`.
    """
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    before, after = pictures[:-1].split(TOGETHER), pictures[1:].split(TOGETHER)
    return torch.cat([unexplained(*pair) for pair in zip(before, after, strict=True)]).numpy()


def unexplained(before: Tensor, after: Tensor) -> Tensor:
    """As `explained`, of pairs of pictures [n, 3, H, W] in 0 ... 255; gradients flow to the pictures."""
    # A little blur: half a pixel of error at a sharp edge should not outweigh everything else.
    before, after = (F.avg_pool2d(p, 3, 1, 1, count_include_pad=False) for p in (before, after))
    maps = _maps(before.shape[-1])
    still = (after - before).abs().mean(dim=(1, 2, 3))
    turns = _errors(before, after, maps["turns"]).mean(-1)
    steps = _errors(before, after, maps["steps"]).unflatten(1, (2, len(SLIDES + SLOW), len(DEPTHS)))
    # The best depth of every column, then the best slide.
    shape = steps.shape
    steps = F.avg_pool1d(steps.flatten(0, 3)[:, None], WALL, 1, WALL // 2, count_include_pad=False).view(shape)
    steps = steps.amin(3).mean(-1)
    slow = steps[:, :, len(SLIDES) :].amin((1, 2)) + SLOW_COST * still
    fast = steps[:, :, : len(SLIDES)].amin(2) + COST * still[:, None]
    found = {NONE: torch.minimum(still, slow), FORWARD: fast[:, 0], BACK: fast[:, 1]}
    found |= {LEFT: turns[:, 0], RIGHT: turns[:, 1]}
    return torch.stack([found[action] for action in range(len(found))], 1)


def motion(frames: np.ndarray) -> np.ndarray:
    """The class of `maze.ACTIONS` of each change between successive frames: [n - 1]."""
    return explained(frames).argmin(1)
