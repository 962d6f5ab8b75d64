"""Several denoisers that share their passes equal one alone, for every kind of pass and conditioning."""

import threading

import pytest
import torch

from conf.schema import ModelConfig
from parallel.exchange import local_group
from stages.denoise.denoiser import Denoiser
from stages.denoise.share import Ulysses
from stages.models.pocket.network import Network
from stages.models.pocket.sizes import AudioConfig, Sizes
from stages.weights import initialise
from tests.patience import PATIENT_S

ROWS, COLUMNS, CHUNKS = 2, 6, 8
NETWORK = Sizes(
    dim=48, ffn_dim=96, heads=4, layers=3, in_channels=4, out_channels=4, text_dim=16, token_types=True,
    actions=["left", "right"], audio=AudioConfig(layers=[1], dim=8),
)  # fmt: skip
MODELS = {
    "same_level": {"reference": True},
    "frame sink": {"reference": True, "sink_frames": 3, "positions": "slot"},
    "clean": {"reference": True, "sink_frames": 3, "context": "clean", "positions": "abs"},
}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(model: ModelConfig, share=None) -> tuple[list, int]:
    """Every pass of a stream longer than the ring, and the bytes of its banks."""
    network = Network(model.network).eval()
    initialise(network, seed=3)
    denoiser = Denoiser(model, network, ROWS, COLUMNS)
    denoiser.share = share or denoiser.share
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": random(1, 1, 5, 16)})
    found = [denoiser.prefill(banks, {"reference": random(2, 1, 4, 1, 2 * ROWS, 2 * COLUMNS)})]
    for chunk in range(CHUNKS):
        given = {"audio": random(3 + chunk, 1, 3, 4, 8), "actions": random(30 + chunk, 1, 3, 8)}
        x = random(60 + chunk, 1, 4, 3, 2 * ROWS, 2 * COLUMNS)
        for step in range(2):
            found.append(denoiser.step(banks, step, chunk, x, given, 5))
        if denoiser.schedule.commits(chunk):
            found.append(denoiser.commit(banks, chunk, 0.5 * x, given, 5))
        if chunk == 4:  # a recalibration
            found.append(denoiser.prefill(banks, {"reference": x[:, :, :1]}))
    return found, denoiser.stream_bytes


def shared(size: int, work) -> list:
    """`work(share)` on as many threads as there are members; their results by rank."""
    members, results = local_group(0, size, timeout_s=PATIENT_S), {}

    def run(member) -> None:
        try:
            results[member.rank] = work(Ulysses(member))
        except BaseException:
            member.abort()
            raise

    threads = [threading.Thread(target=run, args=(m,)) for m in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(size)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_shared_stream_equals_one_alone(name, size):
    model = ModelConfig(network=NETWORK, window_frames=9, steps=2, **MODELS[name])
    assert model.ring_frames < CHUNKS * 3
    alone, whole = stream(model)
    (found, part), *others = shared(size, lambda share: stream(model, share))
    for a, b in zip(alone, found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, a.abs().max())
    assert part == whole // size
    for result, bytes_there in others:
        assert bytes_there == part
        assert result == [None] * len(alone)


def test_every_member_takes_its_run_of_every_frame():
    frames, tokens = 3, 8
    x = torch.arange(frames * tokens).view(1, -1, 1)
    taken = shared(4, lambda share: share.take(x, frames))
    assert taken[1].flatten().tolist() == [2, 3, 10, 11, 18, 19]
    first, *rest = shared(4, lambda share: share.gather(share.take(x, frames), frames))
    assert first.equal(x)
    assert rest == [None] * 3


def test_self_attention_sees_all_tokens_of_its_heads():
    """What `attend` is given, and where its result goes: q = k = v = (token, head)."""
    frames, tokens, heads = 2, 4, 4
    whole = torch.stack(torch.meshgrid(torch.arange(frames * tokens), torch.arange(heads), indexing="ij"), -1)[None]
    whole = whole.float()

    def work(share):
        def attend(layer, q, k, v):
            first = share.exchange.rank * 2
            assert all(t.equal(whole[:, :, first : first + 2]) for t in (q, k, v))
            return q + 100 * layer

        part = share.take(whole, frames)
        return share.history(attend, frames)(7, part, part, part).equal(part + 700)

    assert shared(2, work) == [True, True]
