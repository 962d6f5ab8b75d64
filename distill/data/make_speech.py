"""Makes `speech.npz` and the shipped speech sample with espeak-ng (a program, not a Python package).

    python -m distill.data.make_speech                  # distill/data/speech.npz
    python -m distill.data.make_speech assets/speech.wav

Needed only to change the corpus: training reads the file, which lies in the repository. Sentences are put together
from the word lists below, the same ones each time.
"""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

from distill.data.sound import BANDS, CORPUS, FPS, RATE, ROWS, STEP
from stages.encode.audio_features import LogMel

# espeak-ng's name of the voice, its pitch (0 ... 99) and words per minute.
VOICES = {
    "ada": ("en-us+f2", 60, 165),
    "ben": ("en-us+m3", 42, 155),
    "cleo": ("en-gb+f4", 52, 180),
    "dan": ("en-gb-scotland+m1", 38, 150),
    "eve": ("en-gb-x-rp+f5", 66, 170),
    "finn": ("en-029+m7", 48, 175),
    "gus": ("en-gb+m5", 30, 140),
    "hana": ("en-us+f1", 72, 190),
    "ida": ("en-us+f3", 56, 160),
    "joel": ("en-gb-x-gbclan+m2", 44, 165),
}
HELD_OUT = ("ida", "joel")
SECONDS = 130

WHO = "the gardener|my sister|a tall sailor|our teacher|the old clock maker|nobody|a curious child|the evening train"
WHO += "|that grey cat|every neighbour|the baker's dog|a quiet engineer|the whole orchestra|you|my friend Oliver"
DOES = "carries|paints|remembers|follows|opens|forgets|listens to|repairs|shows us|imagines|counts|hides|looks for"
DOES += "|sings about|measures|wakes|throws away|borrows|polishes|whispers to"
WHAT = "the blue lantern|seven wooden boxes|a very loud machine|the moon|two cups of tea|an empty page|the river"
WHAT += "|a map of the island|yesterday's bread|the smallest window|her violin|a bowl of oranges|the wide field"
WHAT += "|some easy music|a yellow umbrella|the frozen bridge|five good questions|the shape of a cloud"
WHEN = "before breakfast|in the garden|without a word|again and again|at half past nine|under the stairs|slowly"
WHEN += "|as soon as it rains|near the harbour|with both hands|all through the summer|and laughs|while we wait"
START = "Well,|Listen:|I think|Oh!|Maybe|Once,|Do you know?|Every morning|They say|Now|Wait,|How strange:|Of course"
SHORT = "Yes.|No, no.|Really?|Good morning!|Thank you so much.|Hm.|Let us go.|What a day!|See you soon.|I am here."

SAMPLE = (
    "Hello, and welcome! As long as you keep talking, I keep moving. "
    "There is no last frame, only the next one, right on time. "
    "Stay a while, and watch me stream."
)


def sentence(rng: np.random.Generator) -> str:
    """Something to say, a few words to about twenty."""
    if rng.random() < 0.2:
        return str(rng.choice(SHORT.split("|")))
    words = [str(rng.choice(part.split("|"))) for part in (WHO, DOES, WHAT, WHEN)]
    if rng.random() < 0.4:
        words.insert(0, str(rng.choice(START.split("|"))))
    if rng.random() < 0.35:
        words += ["and", *(str(rng.choice(part.split("|"))) for part in (WHO, DOES, WHAT))]
    return " ".join(words).capitalize() + str(rng.choice([".", ".", "!", "?"]))


def speak(text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
    """Samples at `RATE`, float in [-1, 1]."""
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    with wave.open(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)) as file:
        raw, rate = file.readframes(1 << 30), file.getframerate()
    samples = np.frombuffer(raw, np.int16) / 32768
    # An exact band-limited change of rate: cut the spectrum where the new rate ends.
    count = round(len(samples) * RATE / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * (count / len(samples))


def monologue(name: str, seconds: float) -> np.ndarray:
    """Sentences with pauses in one voice, its pitch and speed varying a little, all at about the same loudness."""
    voice, pitch, speed = VOICES[name]
    rng = np.random.default_rng([*name.encode()])
    parts, length = [], 0
    while length < seconds * RATE:
        said = speak(sentence(rng), voice, pitch + int(rng.integers(-8, 9)), speed + int(rng.integers(-15, 16)))
        said = said * 0.1 / max(np.sqrt((said**2).mean()), 1e-6) * 10 ** (rng.uniform(-2, 2) / 20)
        parts += [said, np.zeros(int(rng.uniform(0.05, 0.7) * RATE))]
        length += sum(map(len, parts[-2:]))
    return np.clip(np.concatenate(parts)[: int(seconds * RATE)], -1, 1)


def make_corpus(path: Path = CORPUS) -> None:
    """Features of every voice, one uint8 a value."""
    features, starts = [], [0]
    for name in VOICES:
        ear = LogMel(FPS, ROWS, BANDS, rate=RATE)
        ear.push(monologue(name, SECONDS))
        features.append(np.clip(np.rint(ear.frames(SECONDS * FPS) / STEP), 0, 255).astype(np.uint8))
        starts.append(starts[-1] + len(features[-1]))
    held_out = [name in HELD_OUT for name in VOICES]
    np.savez_compressed(path, features=np.concatenate(features), starts=starts, voices=list(VOICES), held_out=held_out)


def make_sample(path: Path) -> None:
    """The shipped sound: a held-out voice, 16-bit mono."""
    said = speak(SAMPLE, *VOICES["ida"])
    said = np.concatenate([np.zeros(RATE // 4), said * 0.1 / np.sqrt((said**2).mean()), np.zeros(RATE // 4)])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(np.clip(said, -1, 1) * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    if sys.argv[1:]:
        make_sample(Path(sys.argv[1]))
    else:
        make_corpus()
