"""Banks that one stream after another uses."""

import torch

from conf.schema import ModelConfig
from runtime.pool import BankPool
from stages.denoise.denoiser import Denoiser
from stages.models.pocket.network import Network
from stages.models.pocket.sizes import Sizes
from stages.weights import initialise

ROWS = COLUMNS = 2


def denoiser() -> Denoiser:
    network = Sizes(dim=24, ffn_dim=32, heads=2, layers=2, text_dim=8, text_tokens=4, token_types=True)
    model = ModelConfig(network=network, window_frames=9, steps=2, reference=True, positions="slot", sink_shift=None)
    made = Network(network).eval()
    initialise(made, seed=1)
    return Denoiser(model, made, ROWS, COLUMNS)


def chunks(block: Denoiser, banks, count: int, seed: int) -> list[torch.Tensor]:
    """Velocities of a stream over these banks."""
    draw = torch.Generator().manual_seed(seed)
    channels = block.model.network.in_channels
    block.set_states(banks, {"text": torch.randn(1, 3, 8, generator=draw)})
    block.prefill(banks, {"reference": torch.randn(1, channels, 1, 2 * ROWS, 2 * COLUMNS, generator=draw)})
    found = []
    for chunk in range(count):
        x = torch.randn(1, channels, 3, 2 * ROWS, 2 * COLUMNS, generator=draw)
        found += [block.step(banks, step, chunk, x, {}) for step in range(2)]
    return found


def test_a_stream_in_used_banks_is_what_it_is_in_new_ones():
    block = denoiser()
    pool = BankPool(block, range(2), 1)
    first = pool.take()
    chunks(block, first, 5, seed=3)
    pool.give(first)
    again = pool.take()
    assert next(iter(again.banks.values())) is next(iter(first.banks.values()))
    assert again.states is None
    fresh = chunks(block, block.open(range(2)), 5, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(chunks(block, again, 5, seed=4), fresh, strict=True))


def test_more_banks_are_made_when_all_are_taken_and_kept():
    pool = BankPool(denoiser(), range(2), 1)
    taken = [pool.take() for _ in range(3)]
    assert pool.allocated == 3
    for banks in taken:
        pool.give(banks)
    assert {id(bank) for _ in range(3) for bank in pool.take().banks.values()} == {
        id(bank) for banks in taken for bank in banks.banks.values()
    }
    assert pool.allocated == 3
