"""Sound and the mouth it makes."""

import numpy as np

from distill.data import sound
from stages.encode.audio_features import LogMel


def hear(samples: np.ndarray) -> np.ndarray:
    ear = LogMel(16)
    ear.push(samples)
    ear.finish()
    return ear.frames(len(samples) // 1000)


def tone(hz: float, amplitude: float) -> np.ndarray:
    t = np.arange(16000) / 16000
    return amplitude * sum(np.sin(2 * np.pi * hz * k * t) / k for k in (1, 2, 3))


def test_loud_opens_and_silence_closes():
    opened = [sound.mouth(hear(tone(220, a)))[8, 0] for a in (0.0, 0.003, 0.03, 0.3)]
    assert opened[0] == 0 and np.all(np.diff(opened) >= 0) and opened[-1] > 0.8


def test_bright_is_wide_and_dark_is_narrow():
    dark, bright = (sound.mouth(hear(tone(hz, 0.2)))[8, 1] for hz in (150, 2200))
    assert dark < 0.2 and bright > 0.8


def test_the_mouth_is_causal():
    features = sound.speech("ada")[:60]
    changed = features.copy()
    changed[30:] = 0
    assert np.array_equal(sound.mouth(features)[:30], sound.mouth(changed)[:30])


def test_powers_and_levels_are_inverse():
    features = sound.speech("ben")[:50]
    assert np.allclose(sound.level(sound.power(features)), features, atol=1e-6)


def test_corpus_has_voices_kept_for_evaluation():
    train, kept = sound.voices(), sound.voices(held_out=True)
    assert len(train) == 8 and len(kept) == 2 and not set(train) & set(kept)
    for name in train + kept:
        mouth = sound.mouth(sound.speech(name))
        # It speaks and it pauses; the lips neither rest nor flicker.
        assert 0.3 < mouth[:, 0].mean() < 0.6 and (mouth[:, 0] < 0.05).mean() > 0.05 and mouth[:, 0].max() > 0.9
        assert 0.1 < np.abs(np.diff(mouth[:, 0])).mean() < 0.25
        assert mouth[:, 1].std() > 0.1


def test_clips_are_repeatable_varied_and_as_long_as_asked():
    a, b = sound.clip(4, 48), sound.clip(4, 48)
    assert a.shape == (48, 128) and a.dtype == np.float32 and np.array_equal(a, b)
    many = np.stack([sound.clip(seed, 32) for seed in range(60)])
    assert many.min() >= 0 and many.max() < 1.5
    assert sound.clip(1, 5000, held_out=True).shape == (5000, 128)
    silent = [not clip.any() for clip in many]
    assert 0 < sum(silent) < 20


def test_babble_fits_a_mouth():
    shapes = sound.babble(1, 500)
    assert shapes.shape == (500, 2) and shapes.min() >= 0 and shapes.max() <= 1
