"""Sound in step with the picture: taken up anywhere it is what it would have been."""

import io

import numpy as np
import pytest
import torch

from benchmarks.live_avatar import SMALL
from runtime.encoders import Encoders
from runtime.sound import Sound
from stages.inputs import made_of
from stages.sources.audio import LivePcm
from stages.sources.audio_file import AudioFile
from tests.helpers import config_of, write_wav

HEARD = {
    "log-mel": ("model=nano", "model.network.audio.lookahead_s=0.05"),
    "wav2vec": (*SMALL, "model.fps=16"),
    "a whole file by wav2vec": (*SMALL, "model.fps=16", "model.network.audio.wav2vec.whole_file=true"),
}


@pytest.fixture(params=HEARD)
def hear(request):
    """hear(source): sound as a model hears it, at 16 frames a second."""
    encoders = Encoders(config_of(*HEARD[request.param]).model, torch.device("cpu"))
    heard = made_of(encoders.inputs, "audio")
    return lambda source: Sound(source, 16, encoders.listen(heard, whole_file=isinstance(source, AudioFile)))


def walk(sound, chunks, first=0):
    return [(sound.frames(12), sound.samples(12 * (i + 1))) for i in range(first, first + chunks)]


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_file_is_read_on_from_where_it_stood(tmp_path, hear, at):
    """Also beyond its end, after three chunks."""
    path = write_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 30000))
    whole, before = hear(AudioFile(path)), hear(AudioFile(path))
    expected = walk(whole, 8)
    walk(before, at)
    after = hear(AudioFile(path))
    after.resume(*before.progress, live=False)
    for (features, samples), (a, b) in zip(expected[at:], walk(after, 8 - at, at), strict=True):
        assert np.array_equal(features, a) and np.array_equal(samples, b)
    assert after.over(96) == whole.over(96)


@pytest.mark.parametrize("hear", ["log-mel"], indirect=True)
def test_live_sound_goes_on_though_it_had_ended(hear):
    """What comes is heard from then on, features and samples at the same time."""
    pcm = np.random.default_rng(1).integers(-9000, 9000, 40000).astype("<i2")
    before = hear(LivePcm(io.BytesIO(pcm[:10000].tobytes())))
    walk(before, 2)
    assert before.ended
    after = hear(LivePcm(io.BytesIO(pcm.tobytes())))
    after.resume(*before.progress, live=True)
    features, samples = walk(after, 1, 2)[0]
    # The stream is silent up to where the first part's features had looked: 24 frames and the lookahead.
    looked = 24 * 1000 + 800
    silent = np.concatenate([np.zeros(looked - 24000), pcm[: 36000 - looked] / 32768]).astype(np.float32)
    assert np.array_equal(samples, silent)
    assert not after.ended and features.any()
