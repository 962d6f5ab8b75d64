"""Who a drawn person is, how they feel and how they move: everything about an avatar that is not drawing.

All of it is a pure function of a seed and a frame number, so a clip can start anywhere in an endless stream and be
made again from its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FPS = 16

SKINS = np.array(
    [[255, 224, 196], [241, 194, 150], [224, 172, 118], [190, 128, 84], [141, 85, 52], [92, 56, 38]], np.float32
)
HAIRS = np.array(
    [
        *([28, 24, 26], [84, 50, 28], [146, 86, 40], [222, 184, 96], [188, 66, 30]),
        *([168, 168, 176], [236, 236, 240], [70, 60, 150], [214, 90, 150]),
    ],
    np.float32,
)
EYES = np.array([[70, 44, 24], [52, 96, 170], [48, 128, 76], [110, 110, 120]], np.float32)
CLOTHES = np.array(
    [
        *([190, 40, 48], [40, 70, 160], [36, 120, 84], [236, 236, 232]),
        *([46, 46, 54], [236, 190, 70], [128, 70, 150], [230, 130, 60]),
    ],
    np.float32,
)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (196, 62, 62),
    "orange": (232, 146, 62),
    "yellow": (240, 216, 92),
    "green": (92, 170, 84),
    "teal": (48, 150, 150),
    "blue": (74, 118, 208),
    "purple": (138, 92, 190),
    "pink": (240, 158, 190),
    "grey": (140, 144, 150),
    "white": (232, 234, 238),
}
EMOTIONS = ("neutral", "happy", "sad", "angry", "surprised")
HAIR_STYLES = ("bald", "short", "fringe", "long", "bun", "curly")


@dataclass(frozen=True)
class Identity:
    """One person. Colours in 0 ... 255; the rest in picture units or 0 ... 1."""

    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    style: int
    eyes: tuple[float, float, float]
    glasses: int
    clothes: tuple[float, float, float]
    face_width: float
    face_height: float
    jaw: float
    eye_gap: float

    def vector(self) -> np.ndarray:
        """[24] float32, about 0 ... 1 each: colours; hair style and glasses (none, round, square) one-hot; shape."""
        colours = np.array([*self.skin, *self.hair, *self.eyes, *self.clothes]) / 255
        style, glasses = np.eye(len(HAIR_STYLES))[self.style], np.eye(3)[self.glasses][1:]
        shape = [(self.face_width - 0.36) / 0.1, (self.face_height - 0.46) / 0.1, self.jaw / 0.4]
        gap = [(self.eye_gap - 0.15) / 0.05]
        return np.concatenate([colours, style, glasses, shape, gap]).astype(np.float32)


def identity(seed: int) -> Identity:
    """The person with this number; different numbers look different."""
    rng = np.random.default_rng((seed, 0xFACE))

    def pick(palette: np.ndarray, spread: float) -> tuple[float, float, float]:
        colour = palette[rng.integers(len(palette))] + rng.uniform(-spread, spread, 3)
        return tuple(float(c) for c in np.clip(colour, 12, 250))

    return Identity(
        skin=pick(SKINS, 8),
        hair=pick(HAIRS, 12),
        style=int(rng.integers(len(HAIR_STYLES))),
        eyes=pick(EYES, 10),
        glasses=int(rng.choice([0, 0, 1, 2])),
        clothes=pick(CLOTHES, 12),
        face_width=float(rng.uniform(0.36, 0.46)),
        face_height=float(rng.uniform(0.46, 0.56)),
        jaw=float(rng.uniform(0.0, 0.4)),
        eye_gap=float(rng.uniform(0.15, 0.2)),
    )


def prompt(emotion: str, background: str) -> str:
    """What a viewer would write to get this, e.g. `a happy person on a teal background`."""
    article = "an" if emotion[0] in "aeiou" else "a"
    ground = "an" if background[0] in "aeiou" else "a"
    return f"{article} {emotion} person on {ground} {background} background"


def head_pose(seed: int, frames: np.ndarray) -> np.ndarray:
    """[n, 4] float32 of each frame number: shift in x and y (picture units), roll and turn (radians, about +-0.1).

    Sums of slow sines with periods that never meet, so motion is smooth and does not repeat.
    """
    rng = np.random.default_rng((seed, 0x9053))
    t = np.asarray(frames, np.float64)[:, None, None] / FPS
    period = rng.uniform((2.1, 4.7, 8.5), (3.9, 8.0, 16.0), (4, 3))
    phase = rng.uniform(0, 2 * np.pi, (4, 3))
    share = np.array([0.25, 0.4, 0.35])
    amplitude = np.array([0.07, 0.04, 0.09, 0.16]) * rng.uniform(0.6, 1.2, 4)
    waves = (np.sin(2 * np.pi * t / period + phase) * share).sum(axis=2)
    return (waves * amplitude * 1.5).astype(np.float32)


# How far the lids are down over the frames of one blink: a quarter of a second.
BLINK = np.array([0.5, 1.0, 1.0, 0.45], np.float32)
BLINKS_PER_SECOND = 0.3


def blinks(seed: int, frames: np.ndarray) -> np.ndarray:
    """[n] float32 of each frame number: 0 eyes open ... 1 closed. Each second holds a blink with a fixed chance."""
    frames = np.asarray(frames)
    closed = np.zeros(len(frames), np.float32)
    for second in range(int(frames.min() // FPS), int(frames.max() // FPS) + 1):
        rng = np.random.default_rng((seed, 0xB11A, second + (1 << 40)))
        if rng.random() < BLINKS_PER_SECOND:
            start = second * FPS + int(rng.integers(FPS - len(BLINK)))
            for step, lid in enumerate(BLINK):
                closed[frames == start + step] = lid
    return closed
