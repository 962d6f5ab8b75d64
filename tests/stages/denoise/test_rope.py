"""Positions of keys that are in a bank already."""

import pytest
import torch

from stages.denoise.bank import Bank
from stages.denoise.layout import Layout
from stages.denoise.rope import Rope, rotate


@pytest.mark.parametrize("head", [8, 12, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_that_moves_in_time_is_turned_in_part(head, heads, dtype):
    rope, n = Rope(head, 3, 5), 15
    bank = Bank(Layout(n, 0, 2, 3), [0], heads, head, dtype, torch.device("cpu"))
    bank.raw[0].copy_(torch.randn(1, 2 * n, heads, head, generator=torch.Generator().manual_seed(head)))
    bank.place(rope.table, range(2), rope.moving)
    bank.raw[0][..., 2 * rope.moving :].fill_(torch.nan)  # is not read again
    whole = bank.raw[0].clone()
    whole[..., 2 * rope.moving :] = 0
    bank.place(rope.table, range(7, 9), rope.moving)
    expected = rotate(whole, rope.table(range(7, 9)), out=torch.empty_like(whole))[..., : 2 * rope.moving]
    assert torch.equal(bank.keys[0][:, : 2 * n, :, : 2 * rope.moving], expected)
    assert bank.keys[0].isfinite().all()
    bank.placed[0] = None  # what was not placed is turned wholly
    bank.place(rope.table, range(9, 11), rope.moving)
    assert not bank.keys[0][:, : 2 * n, :, 2 * rope.moving :].isfinite().any()
