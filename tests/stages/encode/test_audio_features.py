"""Log-mel features: the same bits however the sound is cut, in step with the video for ever."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from stages.encode.audio_features import LogMel, mel_filters

RATE = 16000


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def at_once(samples, frames, **options):
    mel = LogMel(**options)
    mel.push(samples)
    mel.finish()
    return mel.frames(frames)


def test_shape_and_scale():
    time = np.arange(RATE) / RATE
    mel = at_once(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 16, fps=16)
    assert mel.shape == (16, 4 * 32) and mel.dtype == np.float32
    assert 1.1 < mel[8].max() < 1.25
    assert at_once(0.1 * noise(RATE), 16, fps=16)[4:].max() < 1.0
    assert np.array_equal(at_once(np.zeros(RATE, np.float32), 16, fps=16), np.zeros((16, 128)))


@settings(max_examples=15)
@given(
    cuts=st.lists(st.integers(0, 9000), max_size=8),
    asks=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    fps=st.sampled_from([16, 25, 29.97, 30000 / 1001]),
    lookahead_s=st.sampled_from([0.0, 0.05]),
)
def test_any_cutting_gives_the_same_bits(cuts, asks, fps, lookahead_s):
    sound = noise(9000)
    whole = at_once(sound, sum(asks), fps=fps, lookahead_s=lookahead_s)
    pieces = iter(np.split(sound, sorted(cuts)))
    mel, rows = LogMel(fps, lookahead_s=lookahead_s), []
    for n in asks:
        while mel.needed(n):
            piece = next(pieces, None)
            if piece is None:
                mel.finish()
            else:
                mel.push(piece)
        rows.append(mel.frames(n))
    assert np.concatenate(rows).tobytes() == whole.tobytes()


def test_a_row_sees_exactly_the_samples_before_its_end():
    sound, hop, frames = noise(RATE), Fraction(RATE, 25 * 4), 20
    before = at_once(sound, frames, fps=25).reshape(-1, 32)
    for row in (7, 33):
        end = int((row + 1) * hop)
        for sample, same in ((end - 500, False), (end - 3, False), (end, True), (end + 100, True)):
            other = sound.copy()
            other[sample] += 0.5
            after = at_once(other, frames, fps=25).reshape(-1, 32)
            assert np.array_equal(before[row], after[row]) == same


def test_lookahead_shifts_the_rows():
    sound = noise(RATE)
    ahead = at_once(sound, 10, fps=16, lookahead_s=0.05)
    late = at_once(np.concatenate([sound[800:], np.zeros(800, np.float32)]), 10, fps=16)
    assert np.array_equal(ahead[3:], late[3:])


def test_needed_is_what_is_missing_and_no_more():
    mel = LogMel(16)
    assert mel.needed(3) == 3000 and mel.needed(0) == 0
    mel.push(noise(2999))
    assert mel.needed(3) == 1
    with pytest.raises(RuntimeError, match="1 samples are missing"):
        mel.frames(3)
    mel.push(noise(1))
    assert mel.needed(3) == 0 and mel.frames(3).shape == (3, 128)
    mel.finish()
    assert mel.needed(100) == 0
    silence = mel.frames(100)
    assert silence[0].any() and not silence[1:].any()
    with pytest.raises(RuntimeError, match="finish"):
        mel.push(noise(1))


def test_memory_is_constant_and_nothing_drifts():
    mel, fps = LogMel(29.97), Fraction(2997, 100)
    pushed = frames = largest = 0
    sound = noise(20000)
    for _ in range(400):
        n = mel.needed(12)
        mel.push(sound[:n])
        pushed += n
        mel.frames(12)
        frames += 12
        largest = max(largest, mel.buffered)
        assert pushed == frames * RATE // fps
    assert largest <= 512


def test_a_far_position_costs_and_gives_the_same():
    near, far = LogMel(16), LogMel(16)
    far._frame, far._start = 10**12, 10**12 * 1000
    sound = noise(4000)
    near.push(sound)
    far.push(sound)
    assert np.array_equal(near.frames(4), far.frames(4))


def test_window_shorter_than_the_hop():
    sound = noise(8000)
    options = {"fps": 16, "rows_per_frame": 1, "bands": 8, "window": 256}
    whole, mel, rows = at_once(sound, 8, **options), LogMel(**options), []
    for _ in range(8):
        n = mel.needed(1)
        mel.push(sound[:n])
        sound = sound[n:]
        rows.append(mel.frames(1))
    assert np.array_equal(np.concatenate(rows), whole)


def test_filters_cover_the_band_with_triangles():
    filters = mel_filters(32, 512, RATE)
    assert filters.shape == (32, 257) and filters.min() == 0 and filters.max() <= 1
    covered = filters.sum(axis=0)[6:222]
    assert covered.min() > 0.99 and covered.max() < 1.01
    with pytest.raises(ValueError, match="too short"):
        mel_filters(64, 128, RATE)


@pytest.mark.parametrize("options", [{"lookahead_s": 0.2}, {"lookahead_s": -0.1}, {"fps": 0}, {"fps": float("nan")}])
def test_what_a_user_can_get_wrong(options):
    with pytest.raises(UserError):
        LogMel(**{"fps": 16, **options})
