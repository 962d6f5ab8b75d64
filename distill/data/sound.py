"""Sound for training and the mouth it makes: features of real synthetic speech, noise, tones and silence.

Features are those of `stages.encode.audio_features.LogMel` at 16 frames a second, [n, 4 * 32] per clip. The corpus
`speech.npz` holds such features (made by `distill.data.make_speech`), so training needs no speech synthesiser.

The mouth is a function of the features of a frame and, a little, of the two before it, written by hand:

    loudness   L = log10(1 + P / FLOOR) / DECADES of the mean power P over the frame's rows and `VOICE` bands
    openness   = smoothstep of L from QUIET (closed: room noise, breath) to LOUD (a stressed vowel)
    width      = smoothstep of the balance B = log10(power above 1.2 kHz / power below) from DARK ("oo") to BRIGHT
                 ("ee", "s"), drawn to REST where there is too little sound to tell

Both are then smoothed over three frames (`WEIGHTS`, newest first; silence before the start), since lips have weight:
a mouth that follows every 60 ms of sound flickers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from conf.errors import UserError
from conf.paths import is_file
from stages.encode.audio_features import DECADES, FLOOR, LogMel

FPS, ROWS, BANDS, RATE = 16, 4, 32, 16000
CORPUS = Path(__file__).with_name("speech.npz")
# One step of the corpus's uint8 (a third of a decibel); 255 of them are above the loudest sound.
STEP = 1 / 180

VOICE = slice(2, 28)
SPLIT = 16
QUIET, LOUD = 0.42, 0.76
DARK, BRIGHT = -1.9, 0.2
REST = 0.4
WEIGHTS = (0.55, 0.3, 0.15)


def power(features: np.ndarray) -> np.ndarray:
    """Features back to band powers (a sine of amplitude 1 has power 1)."""
    return FLOOR * (10.0 ** (DECADES * np.asarray(features, np.float64)) - 1)


def level(powers: np.ndarray) -> np.ndarray:
    """Powers to the scale of the features: 0 for silence, about 1 for loud speech."""
    return np.log10(1 + np.maximum(powers, 0) / FLOOR) / DECADES


def smoothstep(x: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """0 up to `lo`, 1 from `hi` on, level at both ends."""
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def mouth(features: np.ndarray) -> np.ndarray:
    """Openness and width [n, 2] float32, 0 ... 1, for features [n, 128] from the start of a sound on."""
    powers = power(features).reshape(len(features), ROWS, BANDS).mean(axis=1)
    loud = level(powers[:, VOICE].mean(axis=1))
    openness = smoothstep(loud, QUIET, LOUD)
    low, high = powers[:, :SPLIT].mean(axis=1), powers[:, SPLIT:].mean(axis=1)
    width = smoothstep(np.log10((high + FLOOR) / (low + FLOOR)), DARK, BRIGHT)
    # How much there is to judge by: none at the level of quiet rooms, all of it a little above.
    sure = smoothstep(loud, QUIET - 0.1, QUIET + 0.1)
    shape = np.stack([openness, REST + sure * (width - REST)], axis=1)
    past = np.concatenate([np.tile([[0.0, REST]], (len(WEIGHTS) - 1, 1)), shape])
    newest = len(WEIGHTS) - 1
    smooth = sum(w * past[newest - i : newest - i + len(shape)] for i, w in enumerate(WEIGHTS))
    return smooth.astype(np.float32)


@cache
def _corpus() -> dict[str, np.ndarray]:
    if not is_file(CORPUS):
        rule = "the corpus of speech is not in this installation: it comes with the repository alone"
        raise UserError(str(CORPUS), rule, "copy it there, or train in a checkout")
    with np.load(CORPUS) as file:
        return {name: file[name] for name in file.files}


def voices(held_out: bool = False) -> list[str]:
    """Names of the corpus's voices for training, or of those kept for evaluation."""
    corpus = _corpus()
    return [str(name) for name, kept in zip(corpus["voices"], corpus["held_out"], strict=True) if kept == held_out]


def speech(voice: str) -> np.ndarray:
    """All features of one voice, float32 [n, 128]: sentence after sentence with short pauses."""
    corpus = _corpus()
    at = [str(name) for name in corpus["voices"]].index(voice)
    return corpus["features"][corpus["starts"][at] : corpus["starts"][at + 1]].astype(np.float32) * np.float32(STEP)


def clip(seed: int, frames: int, held_out: bool = False) -> np.ndarray:
    """Features [frames, 128] float32 of what may be heard: mostly speech, some of it over noise, and other sounds.

    Held-out voices are never mixed with others, and always speak: they are what evaluation listens to.
    """
    rng = np.random.default_rng((seed, 0x50D))
    kind = "speech" if held_out else rng.choice(["speech", "noisy", "tones", "noise", "silence"], p=_MIX)
    if kind == "silence":
        return np.zeros((frames, ROWS * BANDS), np.float32)
    if kind in ("tones", "noise"):
        return _listen(_tones(rng, frames) if kind == "tones" else _noise(rng, frames, rng.uniform(-60, -20)), frames)
    names = voices(held_out)
    spoken = speech(names[rng.integers(len(names))])
    gain = 0.0 if held_out else rng.uniform(-8, 4)
    parts, length = [], 0
    # Longer than the corpus is possible: it is read from one random place after another.
    while length < frames:
        start = int(rng.integers(max(1, len(spoken) - min(frames, 8 * FPS))))
        parts.append(spoken[start : start + int(rng.integers(3 * FPS, 15 * FPS))])
        length += len(parts[-1])
    powers = power(np.concatenate(parts)[:frames]) * 10 ** (gain / 10)
    if kind == "noisy":
        powers = powers + power(_listen(_noise(rng, frames, rng.uniform(-70, -45)), frames))
    return level(powers).astype(np.float32)


_MIX = (0.68, 0.16, 0.08, 0.04, 0.04)


def _listen(samples: np.ndarray, frames: int) -> np.ndarray:
    """Features [frames, 128] of samples [frames * 1000]."""
    ear = LogMel(FPS, ROWS, BANDS, rate=RATE)
    ear.push(samples)
    ear.finish()
    return ear.frames(frames)


def _envelope(rng: np.random.Generator, count: int) -> np.ndarray:
    """Loudness over time, 0 ... 1: swells of a tenth of a second to a second, with rests."""
    knots = np.cumsum(rng.uniform(0.06, 0.5, count // 1600 + 3)) * RATE
    heights = rng.random(len(knots)) * (rng.random(len(knots)) > 0.25)
    return np.interp(np.arange(count), knots - knots[0], heights)


def _noise(rng: np.random.Generator, frames: int, decibels: float) -> np.ndarray:
    """Hiss to rumble, steady or swelling, at this level."""
    count = frames * RATE // FPS
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)) / len(spectrum), 1e-3) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, count)
    noise *= 10 ** (decibels / 20) / max(noise.std(), 1e-9)
    return noise * (_envelope(rng, count) if rng.random() < 0.5 else 1.0)


def _tones(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A few gliding notes with overtones that swell and rest."""
    count = frames * RATE // FPS
    total = np.zeros(count)
    for _ in range(int(rng.integers(1, 4))):
        glide = np.interp(
            np.arange(count), np.linspace(0, count, 5), rng.uniform(90, 1200) * 2 ** rng.uniform(-1, 1, 5)
        )
        phase = 2 * np.pi * np.cumsum(glide) / RATE
        for overtone in range(1, int(rng.integers(2, 8))):
            total += np.sin(overtone * phase) / overtone * (glide * overtone < 7000) * _envelope(rng, count)
    return total * 10 ** (rng.uniform(-30, -8) / 20)


def babble(seed: int, frames: int) -> np.ndarray:
    """Mouth shapes [frames, 2] float32 that move like speech but come from no sound: for training the codec."""
    rng = np.random.default_rng((seed, 0xBABB))
    shapes = []
    while len(shapes) <= frames:
        # A syllable is one to four frames; now and then the mouth rests.
        rest = rng.random() < 0.15
        target = (0.0, rng.uniform(0.2, 0.6)) if rest else (rng.beta(1.2, 1.6), rng.random())
        shapes += [target] * int(rng.integers(2, 14) if rest else rng.integers(1, 5))
    shapes = np.array(shapes, np.float32)
    smooth = 0.6 * shapes[1:] + 0.4 * shapes[:-1]
    return smooth[:frames]
