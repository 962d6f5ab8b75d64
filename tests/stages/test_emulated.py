"""Emulated stages: as long as they are told, for messages of the model's size."""

from types import SimpleNamespace

import pytest
import torch

from conf.errors import UserError
from conf.schema import EmulatedConfig
from stages import emulated
from stages.emulated import EmulatedDecoder, EmulatedDenoiser, EmulatedDevice, latent_shape
from tests.helpers import config_of

LARGE = ("model=nano", "model.dtype=bfloat16", "model.network.dim=5120", "model.network.heads=40")


@pytest.fixture
def held(monkeypatch):
    """What was slept, in place of sleeping."""
    found = []
    monkeypatch.setattr(emulated.time, "sleep", found.append)
    monkeypatch.setattr(emulated, "_timer_late", lambda: 0.0)
    return found


def denoiser(layers: range, *overrides: str, worker: int = 0, **times) -> EmulatedDenoiser:
    model = config_of(*LARGE, *overrides).model
    return EmulatedDenoiser(EmulatedDevice(EmulatedConfig(**times), worker), model, layers, 24, 44)


def step(found: EmulatedDenoiser, chunk: int = 0) -> torch.Tensor:
    return found.step(found.open(), 0, chunk, torch.zeros(1), {})


def test_messages_have_the_models_sizes(held):
    """A 14B model's at 704x384 in bfloat16: 0.405 MB of latents, 32.4 MB of hidden states."""
    assert step(denoiser(range(3, 6))).nbytes == 405_504
    assert step(denoiser(range(0, 3))).nbytes == 3 * 24 * 44 * 5120 * 2
    assert denoiser(range(0, 3)).prefill(None, None).nbytes == 24 * 44 * 5120 * 2


def test_sizes_may_be_given(held):
    assert step(denoiser(range(0, 3), hidden_bytes=1000)).nbytes == 1000
    shape = latent_shape(config_of(*LARGE).model, EmulatedConfig(latent_bytes=2000), 3, 48, 88)
    assert torch.zeros(shape, dtype=torch.bfloat16).nbytes == 2000


def test_a_block_takes_its_share(held):
    step(denoiser(range(2, 4), step_s=0.6))
    step(denoiser(range(2, 4), layers_s=[1, 2, 3, 4, 5, 6]))
    step(denoiser(range(2, 4), step_s=0.6, speeds=[1, 0.5], worker=1))
    step(denoiser(range(2, 4), step_s=0.6, speeds=[0.5], worker=1))
    assert held == pytest.approx([0.2, 7, 0.4, 0.2])


def test_processes_that_share_a_pass_share_its_time(held):
    found = denoiser(range(0, 6), step_s=0.6, commit_s=0.3)
    found.share = SimpleNamespace(parts=3)
    step(found)
    found.commit(found.open(), 0, None, None)
    assert held == pytest.approx([0.2, 0.1])


def test_passes_take_their_own_time(held):
    found = denoiser(range(0, 6), step_s=0.6, commit_s=0.3, prefill_s=0.1)
    found.commit(found.open(), 0, None, None)
    found.prefill(found.open(), None)
    decoder = EmulatedDecoder(EmulatedDevice(EmulatedConfig(decode_s=0.2), 0), found.model, 64, 64)
    frames = decoder(torch.zeros(1), decoder.start())
    assert held == pytest.approx([0.3, 0.1, 0.2])
    assert frames.shape == (1, 3, 0, 64, 64)


def test_jitter_is_a_function_of_worker_chunk_and_pass(held):
    for worker in (0, 1):
        for _ in range(2):
            for chunk in range(3):
                step(denoiser(range(6), step_s=1.0, jitter=0.1, worker=worker), chunk)
    first, again, other = held[:3], held[3:6], held[6:9]
    assert first == again != other
    assert len(set(first)) == 3
    device = EmulatedDevice(EmulatedConfig(jitter=0.1), 0)
    factors = torch.tensor([device._factor(chunk, "step0") for chunk in range(4000)])
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.1, rel=0.1)


def test_wrong_times_are_refused():
    with pytest.raises(UserError, match=r"step_s=-1.*must not be below zero"):
        EmulatedConfig(step_s=-1)
    with pytest.raises(UserError, match="speeds=0"):
        EmulatedConfig(speeds=[0])
    with pytest.raises(UserError, match="layers_s has 2 values: the model has 6 layers"):
        denoiser(range(6), layers_s=[1, 2])


def test_banks_of_a_size_are_memory_whose_written_slots_a_cut_copies(held):
    found = denoiser(range(2, 4), bank_bytes=6_000_000)
    streams = found.open()
    assert found.stream_bytes == pytest.approx(2e6 * len(streams.banks), rel=0.01)
    found.step(streams.view(1, None), 1, 0, torch.zeros(1), {})
    assert len(streams.banks[1].dirty) == found.model.chunk_frames
    assert not streams.banks[0].dirty
    streams.clear()
    assert not streams.banks[1].written
