"""Worlds' positions have no end: far behind the published tables of 1,024 a stream is what it is at its beginning."""

from collections.abc import Iterator

import pytest
import torch

from stages.denoise.denoiser import Denoiser
from tests.stages.lingbot import test_lingbot as lingbot
from tests.stages.matrix_game import test_matrix_game as matrix_game

NEAR, FAR = 12, 12 + 10_008
"""Chunks at which windows have gone round and their slots are the same; the second is at latent frame 30,060."""
CHUNKS = 4


def walk(denoiser: Denoiser, start: int, inputs, states: dict, noise) -> Iterator[torch.Tensor]:
    """Chunks of a stream that is driven alike wherever it starts, over banks of zeros."""
    banks = denoiser.open()
    denoiser.set_states(banks, states)
    for i in range(CHUNKS):
        x = noise(i, 0)
        for step in range(denoiser.sampler.steps):
            v = denoiser.step(banks, step, start + i, x, inputs.given(1 + i))
            x = denoiser.sampler.update(step, x, v, noise(i, step + 1))
        denoiser.commit(banks, start + i, x, inputs.given(1 + i))
        yield x


def world(name: str, **changes):
    """A denoiser, and what drives it."""
    if name == "lingbot":
        model = lingbot.model_of(window_frames=12, **changes)
        return lingbot.build(model), lingbot.Drive(model), {"text": lingbot.TEXT}, lingbot.noise
    model = matrix_game.model_of(name, **changes)
    return matrix_game.build(model), matrix_game.Pressed(model), {"image_rows": matrix_game.SEEN}, matrix_game.noise


@pytest.mark.parametrize("name", ["lingbot", *matrix_game.VARIANTS])
@torch.no_grad()
def test_a_window_far_away_is_the_window_nearby(name):
    what = world(name)
    near, far = (walk(what[0], start, *what[1:]) for start in (NEAR, FAR))
    for i, (a, b) in enumerate(zip(near, far, strict=True)):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max(), i


@pytest.mark.parametrize("positions", ["abs", "slot"])
@torch.no_grad()
def test_an_attention_sink_may_be_left_as_far_behind(positions):
    """What is turned by the distance alone is finite; where the window follows its sink at once nothing changes."""
    what = world("lingbot", sink_frames=3, positions=positions)
    near, far = (list(walk(what[0], start, *what[1:])) for start in (NEAR, FAR))
    assert all(x.isfinite().all() and 0.5 < x.std() / y.std() < 2 for x, y in zip(far, near, strict=True))
    if positions == "slot":
        assert all((a - b).abs().max() <= 1e-5 * a.abs().max() for a, b in zip(near, far, strict=True))
