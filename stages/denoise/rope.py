"""3-D rotary position embedding (arXiv 2503.20314): one table of complex factors per pass, shared by all layers.

A head of width D is split into D - 4 floor(D/6) temporal and 2 floor(D/6) channels for each of height and
width; pair j of an axis with d channels turns by position * base^(-2j/d), base 10000. Attention sees only differences
of positions, so a stream may run for ever: angles are reduced modulo 2 pi in float64 before they are
rounded, and nothing is looked up in a table of finite length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import devices

LANES = 16
"""Complex numbers that torch multiplies at once on a processor, at most. What is left of a row it multiplies one by
one, and rounds otherwise."""


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that encode (frame, row, column)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def _factors(positions: Tensor, width: int, base: float) -> Tensor:
    """Complex64 factors [n, width / 2]; angles are float64, reduced to [0, 2 pi) before they are rounded."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(positions.double(), frequencies) % (2 * math.pi)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


class Rope:
    """Rotation tables for one token grid.

    Args:
        head_dim: channels of an attention head.
        rows, columns: tokens of one latent frame.
        device: where the tables live.
        widths: channels that turn with each axis; None: as `axis_widths` splits a head.
        base: of the angles.
    """

    def __init__(
        self,
        head_dim: int,
        rows: int,
        columns: int,
        device: torch.device | str = "cpu",
        widths: tuple[int, int, int] | None = None,
        base: float = 10000.0,
    ):
        self.rows, self.columns, self.base = rows, columns, base
        self._upload = devices.of(device).upload
        self.widths = widths or axis_widths(head_dim)
        self.spatial = self._plane(range(rows), range(columns))

    @property
    def moving(self) -> int:
        """Channel pairs of a head, from the first one on, that have to be turned again where only the position in time
        is another: those that turn with it, up to a whole number of what torch multiplies at once."""
        return min(sum(self.widths) // 2, -(-self.widths[0] // 2 // LANES) * LANES)

    def _plane(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Factors [rows * columns, ..] of a frame's tokens at these rows and columns."""
        _, height_width, width_width = self.widths
        by_row = _factors(torch.tensor(list(rows)), height_width, self.base)[:, None].expand(-1, len(columns), -1)
        by_column = _factors(torch.tensor(list(columns)), width_width, self.base)[None].expand(len(rows), -1, -1)
        return self._upload(torch.cat([by_row, by_column], -1).flatten(0, 1))

    def table(self, frame_positions: Sequence[int]) -> Tensor:
        """Factors [frames * rows * columns, 1, head_dim / 2], complex64, for frames at these positions."""
        return self._joined(frame_positions, self.spatial)

    def points(self, frame_positions: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """As `table`, for frames of fewer tokens, which stand at these rows and columns of the grid."""
        return self._joined(frame_positions, self._plane(rows, columns))

    def _joined(self, frame_positions: Sequence[int], spatial: Tensor) -> Tensor:
        positions = torch.tensor(list(frame_positions), dtype=torch.float64)
        time = self._upload(_factors(positions, self.widths[0], self.base))
        both = [time[:, None].expand(-1, len(spatial), -1), spatial[None].expand(len(time), -1, -1)]
        return torch.cat(both, -1).flatten(0, 1)[:, None]


def rotate(x: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn adjacent channel pairs of `x` [B, N, heads, head_dim] by `table` [N, 1, head_dim / 2].

    With `out` (same shape and dtype as `x`, or `x` itself) the result is written there, e.g. straight into a
    bank's slot. A head's result depends on how many there are in no bit.
    """
    if x.shape[2] == 1:
        # Torch would see one long row of numbers and round its last few in another way than those of a head among
        # others. Rows that stand apart stay rows.
        table = torch.nn.functional.pad(table, (0, 1))[..., :-1]
    if out is None:
        # Differentiable, as training needs it.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
    if out.dtype != torch.float32:
        return out.copy_((x.float().view(torch.complex64) * table).view(torch.float32))
    torch.mul(x.view(torch.complex64), table, out=out.view(torch.complex64))
    return out
