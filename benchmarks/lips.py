"""When a face shows a sound: the mouth that the sound makes is laid over the mouth that is seen, until they agree.

What is measured needs no test pattern in a model. The person who is to be seen is known (the session was opened with
that person's picture), so the mouth is read from each frame as evaluations read it (`distill.evaluate.portrait`).
`distill.data.sound` says which mouth a sound makes, for a voice as for a beep. The beeps come at uneven intervals, so
that there is one time shift only at which both agree.
"""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np

from benchmarks.chromium import Sound
from distill.data import avatar
from distill.data import sound as heard
from distill.evaluate import gallery, portrait
from stages.encode.audio_features import LogMel

BEEP_S, BEEP_HZ, BEEP_LOUD, RAMP_S = 0.2, 1000.0, 0.3, 0.01
BETWEEN_S = (1.2, 2.2)
WAV_RATE = 48_000
PHASES = 4
"""Mouths that are computed for each frame's time: what is seen falls between frames of the sound."""
FINE_S = 0.005
"""Of shifts that are tried."""
WINDOW_S, EVERY_S = 6.0, 1.5
"""Of frames that are compared at a time, and between the beginnings of such windows."""
EITHER_S = 0.5
"""Before and after the moment at which a beep is expected to be seen."""
LEAST_MOVED = 0.05
"""Standard deviation of an open mouth below which a window says nothing."""


def beeps(path: Path, seconds: float, seed: int = 17) -> None:
    """Write a WAV of beeps at uneven intervals, 48 kHz mono s16."""
    rng = np.random.default_rng(seed)
    samples = np.zeros(round(seconds * WAV_RATE))
    t = np.arange(round(BEEP_S * WAV_RATE)) / WAV_RATE
    beep = BEEP_LOUD * np.sin(2 * np.pi * BEEP_HZ * t) * np.minimum(1, np.minimum(t, t[::-1]) / RAMP_S)
    at = rng.uniform(*BETWEEN_S)
    while at + BEEP_S < seconds:
        begin = round(at * WAV_RATE)
        samples[begin : begin + len(beep)] = beep[: len(samples) - begin]
        at += rng.uniform(*BETWEEN_S)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(WAV_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def seen(frames: np.ndarray, scene: avatar.Scene) -> np.ndarray:
    """How far the mouth is open, 0 ... 1, in each of frames uint8 [n, H, W, 3] of this person."""
    person = gallery.Gallery([scene.identity])
    return portrait.fit(frames, scene, person.pose(frames, scene.identity)).mouth[:, 0]


def made(sound: Sound) -> tuple[np.ndarray, np.ndarray]:
    """How far a mouth is open that makes this sound: (times in seconds, openness), PHASES for each frame.

    The time is that at which the frame's sound begins, as a picture is put up when its sound begins.
    """
    samples = resampled(sound)
    step = heard.RATE // (heard.FPS * PHASES)
    frames = len(samples) * heard.FPS // heard.RATE - 1
    found = np.zeros((frames, PHASES))
    for phase in range(PHASES):
        ear = LogMel(heard.FPS, heard.ROWS, heard.BANDS, rate=heard.RATE)
        ear.push(samples[phase * step :])
        ear.finish()
        found[:, phase] = heard.mouth(ear.frames(frames))[:, 0]
    return sound.start + np.arange(frames * PHASES) / (heard.FPS * PHASES), found.reshape(-1)


def resampled(sound: Sound) -> np.ndarray:
    """Its samples at the rate that models hear, float32."""
    resampler = av.AudioResampler("flt", "mono", heard.RATE)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples[None]), format="flt", layout="mono")
    frame.sample_rate = sound.rate
    return np.concatenate([part.to_ndarray().reshape(-1) for f in (frame, None) for part in resampler.resample(f)])


def lags(
    shown: np.ndarray, mouth: np.ndarray, sound: tuple[np.ndarray, np.ndarray], least: float, most: float
) -> np.ndarray:
    """By how many seconds a mouth follows a sound, window by window.

    Args:
        shown: [n] when each frame came onto the screen.
        mouth: [n] how far it was open there.
        sound: times and openness, from `made`.
        least, most: shifts that are tried.

    Returns:
        [windows] shifts with the highest correlation; NaN where nothing was said, or seen to be.
    """
    shifts = np.arange(least, most + FINE_S / 2, FINE_S)
    found = []
    for begin in np.arange(shown[0], shown[-1] - WINDOW_S, EVERY_S):
        within = (shown >= begin) & (shown < begin + WINDOW_S)
        at, there = shown[within], mouth[within]
        owed = np.interp(at[:, None] - shifts, *sound)
        told = (at[0] - most >= sound[0][0]) and len(at) > 1
        if not told or there.std() < LEAST_MOVED or owed.std(axis=0).max() < LEAST_MOVED:
            found.append(np.nan)
            continue
        owed, there = owed - owed.mean(axis=0), there - there.mean()
        agreement = (owed * there[:, None]).mean(axis=0) / np.maximum(owed.std(axis=0), 1e-6) / there.std()
        found.append(float(shifts[agreement.argmax()]))
    return np.array(found)


def onsets(sound: Sound) -> np.ndarray:
    """When each beep begins, seconds."""
    loud = np.abs(sound.samples) > BEEP_LOUD / 10
    first = np.flatnonzero(loud)
    if not len(first):
        return np.zeros(0)
    begins = np.concatenate([[True], np.diff(first) > BEEP_S * sound.rate])
    return sound.start + first[begins] / sound.rate


def opened(shown: np.ndarray, mouth: np.ndarray, begun: np.ndarray, about: float) -> np.ndarray:
    """How long after each beep the first frame came in which the mouth was opening, seconds; NaN: none did.

    Opening is being a quarter of the way to as far as beeps open it.

    Args:
        shown, mouth: as for `lags`.
        begun: when each beep began.
        about: by how much the mouth follows, from `lags`: beeps may come faster than what they open.
    """
    shut, wide = np.percentile(mouth, [20, 97])
    opening = mouth > shut + 0.25 * (wide - shut)
    moments = shown[1:][opening[1:] & ~opening[:-1]]
    return np.array(
        [min((m - b for m in moments if -EITHER_S <= m - b - about < EITHER_S), default=np.nan) for b in begun],
        np.float64,
    )
