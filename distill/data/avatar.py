"""A drawn talking head: seeded, endless, with the truth behind every frame.

    clip = sample(seed=7, frames=48, mouth=mouth_shapes)   # clip.frames: uint8 [48, 64, 64, 3]
    face = reference(clip.scene, size=64)                  # the same person, mouth closed, looking ahead

The person (`identity`), how the head moves and when it blinks come from seeds (`distill.data.people`); the mouth is
given per frame as (openness, width) and comes from sound (`distill.data.sound`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from distill.data.draw import View, blank, box, capsule, ellipse, ring
from distill.data.people import BACKGROUNDS, EMOTIONS, Identity, blinks, head_pose, identity, prompt

# Identities with these numbers are never trained on.
HELD_OUT = range(1000)
CHUNK = 16
# Where the picture ends, in picture units: close enough for a mouth of a dozen pixels at 64x64.
REACH = 0.86

# Per emotion: inner and outer brow offset (down is positive), smile (corners up), eye opening, mouth width.
EXPRESSIONS = {
    "neutral": (0.00, 0.00, 0.012, 1.00, 0.00),
    "happy": (-0.03, -0.01, 0.075, 0.85, 0.03),
    "sad": (-0.06, 0.06, -0.065, 0.80, -0.01),
    "angry": (0.075, -0.045, -0.045, 0.80, 0.01),
    "surprised": (-0.10, -0.08, 0.000, 1.30, -0.02),
}


@dataclass(frozen=True)
class Scene:
    """What stays the same through a clip. `motion` seeds head motion and blinks."""

    identity: int
    background: str
    emotion: str
    motion: int

    @property
    def prompt(self) -> str:
        """The text that asks for this background and emotion."""
        return prompt(self.emotion, self.background)

    @property
    def person(self) -> Identity:
        """Who it is."""
        return identity(self.identity)


@dataclass(frozen=True)
class AvatarClip:
    """Frames uint8 [n, H, W, 3] and their truth, one row a frame.

    Attributes:
        mouth: [n, 2] openness and width, 0 ... 1.
        pose: [n, 4] shift in x and y (picture units), roll and turn (radians).
        blink: [n] 0 open ... 1 closed.
    """

    frames: np.ndarray
    scene: Scene
    mouth: np.ndarray
    pose: np.ndarray
    blink: np.ndarray


def scene(seed: int, held_out: bool = False) -> Scene:
    """A random scene. Training draws from an endless range of identities, evaluation from `HELD_OUT`."""
    rng = np.random.default_rng((seed, 0x5CE7E))
    who = int(rng.integers(len(HELD_OUT)) if held_out else rng.integers(len(HELD_OUT), 1 << 40))
    background, emotion = rng.choice(list(BACKGROUNDS)), rng.choice(EMOTIONS)
    return Scene(who, str(background), str(emotion), int(rng.integers(1 << 40)))


def sample(seed: int, frames: int, mouth: np.ndarray, size: int = 64, start: int = 0) -> AvatarClip:
    """A clip of the random scene of `seed`: `frames` frames from number `start` with mouth shapes [frames, 2]."""
    return perform(scene(seed), frames, mouth, size, start)


def perform(setting: Scene, frames: int, mouth: np.ndarray, size: int = 64, start: int = 0) -> AvatarClip:
    """As `sample`, of a given scene."""
    mouth = np.asarray(mouth, np.float32)
    if mouth.shape != (frames, 2):
        raise ValueError(f"mouth is {mouth.shape}, not {(frames, 2)}")
    numbers = np.arange(start, start + frames)
    pose, blink = head_pose(setting.motion, numbers), blinks(setting.motion, numbers)
    pixels = np.empty((frames, size, size, 3), np.uint8)
    # A few frames at a time stay in the processor's cache.
    for lo in range(0, frames, CHUNK):
        part = slice(lo, lo + CHUNK)
        pixels[part] = render(setting, mouth[part], pose[part], blink[part], size)
    return AvatarClip(pixels, setting, mouth, pose, blink)


def reference(setting: Scene, size: int = 64, emotion: str | None = None, background: str | None = None) -> np.ndarray:
    """[H, W, 3] uint8: the person looking straight ahead with a closed mouth, by default as the scene has them."""
    setting = replace(setting, emotion=emotion or setting.emotion, background=background or setting.background)
    still = np.zeros((1, 4), np.float32)
    return render(setting, np.array([[0.0, 0.35]], np.float32), still, np.zeros(1, np.float32), size)[0]


def render(setting: Scene, mouth: np.ndarray, pose: np.ndarray, blink: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [n, size, size, 3] of these mouth shapes [n, 2], poses [n, 4] and blinks [n]."""
    person = setting.person
    view = blank(len(mouth), size, REACH)
    mouth, pose, blink = (np.asarray(a, np.float32) for a in (mouth, pose, blink))
    dx, dy, roll, turn = (pose[:, i, None, None] for i in range(4))
    cos, sin = np.cos(roll), np.sin(roll)

    def head(part: View, shift: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the head in `part`; what stands out further moves more when the head turns."""
        x, y = part.x - dx, part.y - dy + 0.06
        return x * cos + y * sin - shift * turn, y * cos - x * sin

    _background(view, setting.background)
    _hair_behind(view, person, *head(view, 0.1))
    _body(view, person, dx)
    _head(view, person, *head(view, 0.15))
    reach = person.face_width + 0.22
    face = view.crop(-reach, -0.5, reach, 0.6)
    inner, outer, smile, opening, wide = EXPRESSIONS[setting.emotion]
    u, v = head(face, 0.45)
    rows = face.y[0, :, 0]
    # Three bands, each drawn on its own rows only: eyes and brows, nose, mouth.
    for lo, hi, draw in (
        (-0.5, 0.2, lambda p, a, b: _eyes(p, person, a, b, (inner, outer, opening), turn, blink[:, None, None])),
        (-0.15, 0.3, lambda p, a, b: _nose(p, person, a - 0.3 * turn, b)),
        (-0.05, 0.6, lambda p, a, b: _mouth(p, person, a, b, mouth[:, :, None, None], smile, wide)),
    ):
        band = slice(*np.searchsorted(rows, (lo, hi)))
        part = View(face.canvas[:, band], face.x, face.y[:, band], face.pixel)
        draw(part, u[:, band], v[:, band])
    return np.clip(np.rint(view.canvas), 0, 255).astype(np.uint8)


def _shade(colour, factor: float) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float32) * factor, 0, 255)


def _background(view: View, name: str) -> None:
    # A slight fall of light from top to bottom; the colour stays the named one.
    light = 1.06 - 0.06 * (view.y + 1)
    for channel, value in enumerate(BACKGROUNDS[name]):
        view.canvas[..., channel] = value * light


def _body(view: View, person: Identity, dx: np.ndarray) -> None:
    sway = 0.3 * dx
    low = view.crop(-1, 0.2, 1, 1)
    low.paint(ellipse(low.x - sway, low.y - 1.2, 0.86, 0.6), person.clothes)
    low.paint(box(low.x - 2 * sway, low.y - 0.5, 0.16, 0.24, 0.1), _shade(person.skin, 0.82))
    low.paint(ellipse(low.x - 1.5 * sway, low.y - 0.68, 0.2, 0.12), _shade(person.skin, 0.82))


def _hair_behind(view: View, person: Identity, u: np.ndarray, v: np.ndarray) -> None:
    w, h = person.face_width, person.face_height
    dark = _shade(person.hair, 0.8)
    if person.style == 3:
        view.paint(box(u, v - 0.12, w + 0.13, h + 0.2, w + 0.12), dark)
    elif person.style == 4:
        view.paint(ellipse(u, v + h + 0.04, 0.2, 0.17), dark)
    elif person.style == 5:
        view.paint(ellipse(u, v + 0.16, w + 0.2, h + 0.04), dark)


def _head(view: View, person: Identity, u: np.ndarray, v: np.ndarray) -> None:
    w, h = person.face_width, person.face_height
    for side in (-1, 1):
        view.paint(ellipse(u - side * (w + 0.01), v - 0.02, 0.07, 0.11), _shade(person.skin, 0.88))
    # The jaw narrows smoothly below the eyes.
    narrow = 1 - 0.55 * person.jaw * np.clip(v / h, 0, 1) ** 2
    skull = ellipse(u / narrow, v, w, h)
    view.paint(skull, person.skin)
    if person.style == 0:
        return
    # Hair is what of a slightly larger skull lies above a hairline.
    cap = ellipse(u, v + 0.02, w + 0.02, h + 0.04)
    line = {
        1: v + 0.62 * h - 0.3 * u * u,
        2: v + 0.5 * h,
        3: v + 0.72 * h - 1.6 * u * u,
        4: v + 0.66 * h - 0.9 * u * u,
        5: v + 0.6 * h - 0.8 * u * u,
    }[person.style]
    view.paint(np.maximum(cap, line), person.hair)


def _eyes(
    view: View, person: Identity, u: np.ndarray, v: np.ndarray, brow: tuple[float, float, float], turn, blink
) -> None:
    inner, outer, opening = brow
    lids = 0.062 * opening * (1 - 0.93 * blink)
    line = _shade(person.skin, 0.45)
    hair = _shade(person.hair if person.style else (60, 44, 36), 0.75)
    for side in (-1, 1):
        x, y = u - side * person.eye_gap, v + 0.06
        white = ellipse(x, y, 0.085, lids + 0.004)
        view.paint(white - 0.018, line, 0.7)
        view.paint(white, (246, 246, 244))
        iris = ellipse(x - 0.12 * turn, y, 0.045, 0.045)
        view.paint(np.maximum(iris, white), person.eyes)
        view.paint(np.maximum(iris + 0.024, white), (16, 14, 16))
        if person.glasses:
            rim = ellipse(x, y, 0.145, 0.135) if person.glasses == 1 else box(x, y, 0.14, 0.11, 0.03)
            view.paint(rim, (255, 255, 255), 0.12)
            view.paint(ring(rim, 0.032), (36, 34, 40))
        # Over the glasses: brows are half of what shows a feeling.
        view.paint(capsule(x, v + 0.2, -side * 0.085, inner, side * 0.085, outer, 0.021), hair)
    if person.glasses:
        view.paint(capsule(u, v + 0.08, 0.14 - person.eye_gap, 0, person.eye_gap - 0.14, 0, 0.014), (36, 34, 40))


def _nose(view: View, person: Identity, u: np.ndarray, v: np.ndarray) -> None:
    shade = _shade(person.skin, 0.78)
    view.paint(capsule(u, v, 0.0, 0.0, 0.03, 0.11, 0.014), shade, 0.7)
    view.paint(capsule(u, v, -0.035, 0.125, 0.035, 0.125, 0.018), shade)


def _mouth(view: View, person: Identity, u: np.ndarray, v: np.ndarray, mouth, smile: float, wide: float) -> None:
    openness, width = mouth[:, 0], mouth[:, 1]
    half = 0.10 + wide + 0.085 * width
    tall = 0.125 * openness
    # Bend the coordinates, so that a straight mouth becomes a smile; the top lip rises less than the jaw drops.
    y = v - 0.275 - 0.35 * tall + smile * ((u / half) ** 2 - 0.4)
    lips = 0.5 * _shade(person.skin, 0.85) + 0.5 * np.array([196, 60, 72], np.float32)
    hole = ellipse(u, y, half - 0.02, tall + 0.006)
    view.paint(ellipse(u, y, half + 0.015, tall + 0.05), lips)
    view.paint(hole, (58, 14, 22))
    apart = np.clip(4 * openness - 0.6, 0, 1)
    view.paint(np.maximum(hole + 0.006, y + tall - 0.045), (244, 242, 236), apart)
    tongue = ellipse(u, y - 0.95 * tall, 0.6 * half, 0.45 * tall + 0.006)
    view.paint(np.maximum(tongue, hole + 0.006), (206, 92, 96), apart)
