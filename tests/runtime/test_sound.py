"""Sound in step with the picture: taken up anywhere it is what it would have been."""

import io

import numpy as np
import pytest

from runtime.sound import Sound
from stages.sources.audio import AudioFile, LivePcm
from tests.helpers import config_of, write_wav


@pytest.fixture
def model():
    return config_of("model=nano", "model.network.audio.lookahead_s=0.05").model


def walk(sound, chunks, first=0):
    return [(sound.frames(12), sound.samples(12 * (i + 1))) for i in range(first, first + chunks)]


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_file_is_read_on_from_where_it_stood(tmp_path, model, at):
    """Also beyond its end, after three chunks."""
    path = write_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 30000))
    whole, before = Sound(model, AudioFile(path)), Sound(model, AudioFile(path))
    expected = walk(whole, 8)
    walk(before, at)
    after = Sound(model, AudioFile(path))
    after.resume(*before.progress, live=False)
    for (features, samples), (a, b) in zip(expected[at:], walk(after, 8 - at, at), strict=True):
        assert np.array_equal(features, a) and np.array_equal(samples, b)
    assert after.over(96) == whole.over(96)


def test_live_sound_goes_on_though_it_had_ended(model):
    """What comes is heard from then on, features and samples at the same time."""
    pcm = np.random.default_rng(1).integers(-9000, 9000, 40000).astype("<i2")
    before = Sound(model, LivePcm(io.BytesIO(pcm[:10000].tobytes())))
    walk(before, 2)
    assert before.ended
    after = Sound(model, LivePcm(io.BytesIO(pcm.tobytes())))
    after.resume(*before.progress, live=True)
    features, samples = walk(after, 1, 2)[0]
    # The stream is silent up to where the first part's features had looked: 24 frames and the lookahead.
    looked = 24 * 1000 + 800
    silent = np.concatenate([np.zeros(looked - 24000), pcm[: 36000 - looked] / 32768]).astype(np.float32)
    assert np.array_equal(samples, silent)
    assert not after.ended and features.any()
