"""Layers in contiguous blocks, by dynamic programming: exact, for uneven layers and unequal devices.

A block's cost is a matrix over its range: `cost[b][lo, hi]` is what block b costs if it holds layers `lo` to `hi - 1`
(infinite where it may not). So one block may be on a slow device, carry a decoder, or have little memory, and none of
that is a special case. n blocks of L layers take n L^2 / 2 comparisons, done by rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-9
"""Relative slack of a bound that sums in another order may miss by rounding."""


def prefix_ranges(values: Sequence[float]) -> np.ndarray:
    """Sums over every range: result[lo, hi] = sum(values[lo:hi]); infinite where a range is empty."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    return np.where(_filled(len(values)), total[None, :] - total[:, None], np.inf)


def _filled(layers: int) -> np.ndarray:
    """Which (lo, hi) are ranges with something in them."""
    return np.arange(layers + 1)[:, None] < np.arange(layers + 1)[None, :]


def least_bottleneck(cost: Sequence[np.ndarray]) -> tuple[float, list[int]]:
    """Sizes of the blocks that make the costliest one as cheap as can be.

    best[b][hi] = min over lo of max(best[b - 1][lo], cost[b][lo, hi]).

    Returns:
        The bottleneck and the sizes; infinite and [] if no partition is allowed.
    """
    return _solve(cost, np.maximum)


def least_sum(cost: Sequence[np.ndarray], way: Sequence[np.ndarray], cap: float) -> tuple[float, list[int]]:
    """Sizes that make the sum of `way` least among those where no block costs more than `cap`.

    Returns:
        The sum and the sizes; infinite and [] if no partition is allowed.
    """
    slack = cap * (1 + EPSILON) if np.isfinite(cap) else np.inf
    allowed = [
        np.where(np.isfinite(c) & (c <= slack) & _filled(len(c) - 1), w, np.inf) for c, w in zip(cost, way, strict=True)
    ]
    return _solve(allowed, np.add)


def _solve(cost: Sequence[np.ndarray], join) -> tuple[float, list[int]]:
    layers = cost[0].shape[0] - 1
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    begins = []
    for matrix in cost:
        joined = join(best[:, None], matrix)
        begins.append(joined.argmin(axis=0))
        best = joined.min(axis=0)
    if not np.isfinite(best[layers]):
        return np.inf, []
    sizes, stop = [], layers
    for begin in reversed(begins):
        start = int(begin[stop])
        sizes.append(stop - start)
        stop = start
    return float(best[layers]), sizes[::-1]
