"""What is compiled is compiled before the first stream."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from parallel.exchange import local_group
from runtime import fast
from runtime.pool import BankPool
from runtime.progress import Loading
from runtime.warm import warm_block, warm_decoder
from stages import compiled
from stages.build import build_decoder, build_network
from stages.denoise.denoiser import Denoiser
from stages.denoise.graphs import Graphs
from stages.denoise.share import ALL, Ulysses
from tests.helpers import config_of
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_s2v import build, model_of


@pytest.fixture(autouse=True)
def counters():
    """What the compiler counts, from zero."""
    from torch._dynamo.utils import counters  # seconds to import, for every process of the suite

    torch._dynamo.reset()
    counters.clear()
    compiled.compiled.cache_clear()
    yield counters
    torch._dynamo.reset()


def warmed(context: str, layers: range, parts: int = 1) -> BankPool:
    """Banks of a block that is compiled and warm."""
    model = config_of("model=nano", f"model.context={context}").model
    network = build_network(model, torch.device("cpu"), layers)
    compiled.compile_network(network, backend="aot_eager")
    pool = BankPool(Denoiser(model, network, 2, 2), range(model.levels), 1, parts)
    warm_block(pool)
    return pool


def stream(pool: BankPool) -> None:
    """All kinds of passes, with tensors that are not the warm ones."""
    denoiser, banks = pool.denoiser, pool.take()
    draw = torch.Generator().manual_seed(0)
    given = {
        "audio": torch.randn(1, 3, 4, denoiser.model.network.audio.dim, generator=draw),
        "actions": torch.zeros(1, 3, 4 * len(denoiser.model.network.actions)),
    }
    first = denoiser.network.first
    reference = {"reference": torch.randn(1, 16, 1, 4, 4, generator=draw)} if first else torch.zeros(1, 4, 48)
    x = torch.randn(*((1, 16, 3, 4, 4) if first else (1, 12, 48)), generator=draw)
    denoiser.set_states(banks, {"text": torch.randn(1, 3, 32, generator=draw)})
    denoiser.prefill(banks, reference)
    for chunk in range(6):
        for step in range(4):
            denoiser.step(banks, step, chunk, x, given, 4)
        if denoiser.schedule.commits(chunk):
            denoiser.commit(banks, chunk, x, given, 4)


@pytest.mark.parametrize("context", ["same_level", "clean"])
@pytest.mark.parametrize("layers", [range(3), range(3, 6)], ids=["first block", "last block"])
def test_no_pass_of_a_stream_is_compiled_anew(counters, context, layers):
    pool = warmed(context, layers)
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    stream(pool)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("layers", [range(3), range(3, 6)], ids=["first block", "last block"])
def test_nor_one_that_several_share(counters, layers):
    """Each warms by itself, before it is connected with the others."""
    pools = [warmed("same_level", layers, parts=2) for _ in range(2)]
    before = counters["stats"]["unique_graphs"]
    assert before > 0 and all(pool.denoiser.share is ALL for pool in pools)
    for pool, exchange in zip(pools, local_group(0, 2), strict=True):
        pool.denoiser.share = Ulysses(exchange)
    with ThreadPoolExecutor(2) as members:
        list(members.map(stream, pools))
    assert counters["stats"]["unique_graphs"] == before


def test_passes_that_are_shared_are_not_recorded_by_one_alone():
    """What a graph holds would be the exchange with nobody."""
    pool = BankPool(build(model_of()), [0], 2, parts=2)
    recorder = Replays()
    pool.denoiser.runner = Graphs(recorder)
    warm_block(pool)
    assert recorder.recorded == 0 and pool.allocated == 2


def test_one_worker_of_a_process_is_warmed_at_a_time(monkeypatch):
    """And records nothing while another compiles."""
    held = []
    monkeypatch.setattr(fast, "warm_block", lambda pool: held.append(fast._WARMING.locked()))
    monkeypatch.setattr(fast, "warm_decoder", lambda *_: held.append(fast._WARMING.locked()))
    pool = BankPool(build(model_of()), [0], 1)
    pool.denoiser.runner = Graphs(Replays())
    for compiles in ("true", "false"):
        config = config_of("model=nano", f"device.compile={compiles}")
        fast.ready(config, torch.device("cpu"), [pool], torch.nn.Identity(), Loading())
    assert held == [True] * 3 and not fast._WARMING.locked()


def test_a_decoder_is_warmed_without_a_trace_in_later_streams():
    model = config_of("model=nano").model
    decoder = build_decoder(model, torch.device("cpu"))
    x = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    before = decoder(x, decoder.start())
    warm_decoder(decoder, model, (4, 4))
    assert torch.equal(decoder(x, decoder.start()), before)
