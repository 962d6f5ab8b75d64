"""What is compiled is compiled before the first stream."""

import pytest
import torch

from runtime.pool import BankPool
from runtime.warm import warm_block, warm_decoder
from stages import compiled
from stages.build import build_decoder, build_network
from stages.denoise.denoiser import Denoiser
from tests.helpers import config_of


@pytest.fixture(autouse=True)
def counters():
    """What the compiler counts, from zero."""
    from torch._dynamo.utils import counters  # seconds to import, for every process of the suite

    torch._dynamo.reset()
    counters.clear()
    compiled.compiled.cache_clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("context", ["same_level", "clean"])
@pytest.mark.parametrize("layers", [range(3), range(3, 6)], ids=["first block", "last block"])
def test_no_pass_of_a_stream_is_compiled_anew(counters, context, layers):
    model = config_of("model=nano", f"model.context={context}").model
    network = build_network(model, torch.device("cpu"), layers)
    compiled.compile_network(network, backend="aot_eager")
    denoiser = Denoiser(model, network, 2, 2)
    pool = BankPool(denoiser, range(model.levels), 1)
    warm_block(pool)
    warmed = counters["stats"]["unique_graphs"]
    assert warmed > 0
    banks = pool.take()
    draw = torch.Generator().manual_seed(0)
    given = {
        "audio": torch.randn(1, 3, 4, model.network.audio.dim, generator=draw),
        "actions": torch.zeros(1, 3, 4 * len(model.network.actions)),
    }
    first = network.first
    reference = {"reference": torch.randn(1, 16, 1, 4, 4, generator=draw)} if first else torch.zeros(1, 4, 48)
    x = torch.randn(*((1, 16, 3, 4, 4) if first else (1, 12, 48)), generator=draw)
    denoiser.set_states(banks, {"text": torch.randn(1, 3, 32, generator=draw)})
    denoiser.prefill(banks, reference)
    for chunk in range(6):
        for step in range(4):
            denoiser.step(banks, step, chunk, x, given, 4)
        if denoiser.schedule.commits(chunk):
            denoiser.commit(banks, chunk, x, given, 4)
    assert counters["stats"]["unique_graphs"] == warmed


def test_a_decoder_is_warmed_without_a_trace_in_later_streams():
    model = config_of("model=nano").model
    decoder = build_decoder(model, torch.device("cpu"))
    x = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    before = decoder(x, decoder.start())
    warm_decoder(decoder, model, (4, 4))
    assert torch.equal(decoder(x, decoder.start()), before)
