"""What a drawn face does, read from its picture: mouth, head, lids and feeling, by drawing it again until it fits.

The person is known (it was asked for), so the generator can draw them in any pose. From a rough pose, damped
Gauss-Newton steps (Levenberg, Marquardt) on seven numbers per frame bring the drawing to the picture; the feeling is
the one whose drawing fits best. All frames of a clip are fitted at once; a frame may take over how its neighbours hold
their head where that fits it better, and nothing is known of the sound or of how the video came about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from distill.data import avatar
from distill.data.people import EMOTIONS

# Openness and width of the mouth; shift in x and y, roll and turn of the head; lids. Steps over which the drawing is
# differenced (drawings are rounded to whole colours, so they are not small), and ranges.
STEPS = np.float32([0.08, 0.2, 0.012, 0.012, 0.03, 0.04, 0.15])
LOWEST = np.float32([0.0, 0.0, -0.2, -0.12, -0.25, -0.4, 0.0])
HIGHEST = np.float32([1.0, 1.0, 0.2, 0.12, 0.25, 0.4, 1.0])
HEAD = slice(2, 6)
ROUNDS, LEAPS, FEELING_ROUNDS = 6, (0, 3), 7
MOUTHS, LIDS = (0.0, 0.1, 0.2, 0.3, 0.42, 0.55, 0.7, 0.85), (0.0, 0.5, 1.0)
# Colours further off than this count less: a wrong shirt should not bend the mouth.
OUTLIER = 40.0
# Mean squared difference by which one drawing must be better to be e times as likely: about that of a decoded picture.
BLUR = 8.0


@dataclass(frozen=True)
class Reading:
    """Per frame: mouth [n, 2] (openness and width), pose [n, 4], blink [n]; the best drawing's numbers [n, 7]."""

    mouth: np.ndarray
    pose: np.ndarray
    blink: np.ndarray
    best: np.ndarray


def _draw(setting: avatar.Scene, values: np.ndarray, size: int) -> np.ndarray:
    """[n, pixels] float32."""
    drawn = avatar.render(setting, values[:, :2], values[:, 2:6], values[:, 6], size)
    return drawn.reshape(len(values), -1).astype(np.float32)


def fit(frames: np.ndarray, setting: avatar.Scene, pose: np.ndarray) -> Reading:
    """Fit the person of `setting`, with its feeling and background, to frames uint8 [n, H, W, 3].

    Args:
        pose: [n, 4] where to begin.
    """
    n, size = len(frames), frames.shape[1]
    goal = frames.reshape(n, -1).astype(np.float32)
    values = np.concatenate([np.tile(np.float32([[0.25, 0.4]]), (n, 1)), pose, np.zeros((n, 1), np.float32)], axis=1)
    values, _ = _descend(goal, setting, values, size, ROUNDS, LEAPS)
    return Reading(_expected(goal, setting, values, size), values[:, 2:6], values[:, 6], values)


def _descend(
    goal: np.ndarray, setting: avatar.Scene, values: np.ndarray, size: int, rounds: int, leaps: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The seven numbers after some rounds, with leaps before those that `leaps` names; and what is left unexplained."""
    damping, made = np.full(len(goal), 1e-2, np.float32), _draw(setting, values, size)
    left = _error(goal - made)
    for turn in range(rounds):
        if turn in leaps:
            values, made, left = _leap(goal, setting, (values, made, left), size)
        # Differences towards the inside of the range.
        step = np.where(values + STEPS > HIGHEST, -STEPS, STEPS)
        moved = [values + step * (np.arange(7) == i) for i in range(7)]
        slopes = np.stack([(_draw(setting, m, size) - made) / step[:, i : i + 1] for i, m in enumerate(moved)], 1)
        weight = 1 / np.maximum(1, np.abs(goal - made) / OUTLIER)
        # In units of the steps, so that one damping suits all seven.
        slopes *= STEPS[:, None]
        normal = np.einsum("nip,np,njp->nij", slopes, weight, slopes, optimize=True)
        pull = np.einsum("nip,np->ni", slopes, weight * (goal - made))
        diagonal = np.einsum("nii->ni", normal)
        system = normal + (damping[:, None] * diagonal + 1.0)[:, :, None] * np.eye(7, dtype=np.float32)
        change = np.linalg.solve(system, pull[..., None])[..., 0]
        tried = np.clip(values + np.clip(change, -3, 3) * STEPS, LOWEST, HIGHEST).astype(np.float32)
        drawn = _draw(setting, tried, size)
        error = _error(goal - drawn)
        better = error < left
        values, made = np.where(better[:, None], tried, values), np.where(better[:, None], drawn, made)
        left, damping = np.where(better, error, left), np.where(better, damping * 0.3, damping * 8)
    return values, left


def _expected(goal: np.ndarray, setting: avatar.Scene, values: np.ndarray, size: int) -> np.ndarray:
    """Mouths [n, 2], with the openness expected over all of them, each as likely as exp(-error / `BLUR`).

    In a blurred picture the single best drawing jumps between two that fit about as well; their mean does not.
    """
    openness = np.linspace(0, 1, 21, dtype=np.float32)
    errors = []
    for choice in openness:
        tried = values.copy()
        tried[:, 0] = choice
        errors.append(np.square(goal - _draw(setting, tried, size)).sum(axis=1) / goal.shape[1])
    errors = np.stack(errors, axis=1)
    weight = np.exp((errors.min(axis=1, keepdims=True) - errors) / BLUR)
    return np.stack([weight @ openness / weight.sum(axis=1), values[:, 1]], axis=1)


def _leap(goal: np.ndarray, setting: avatar.Scene, found: tuple[np.ndarray, ...], size: int) -> tuple[np.ndarray, ...]:
    """Try what slopes do not lead to: how neighbours in time hold their head, other mouths (teeth appear as one opens)
    and other lids. `found` and the result are values, their drawing, and its error."""
    n = len(goal)

    def attempt(found, entries, choice):
        values, made, left = found
        tried = values.copy()
        tried[:, entries] = choice
        drawn = _draw(setting, tried, size)
        error = _error(goal - drawn)
        better = error < left
        keep = better[:, None]
        return np.where(keep, tried, values), np.where(keep, drawn, made), np.where(better, error, left)

    for away in (1, -1, 2, -2, 4, -4):
        found = attempt(found, HEAD, found[0][np.clip(np.arange(n) + away, 0, n - 1), HEAD])
    for entry, choices in ((0, MOUTHS), (6, LIDS)):
        for choice in choices:
            found = attempt(found, entry, choice)
    return found


def _error(difference: np.ndarray) -> np.ndarray:
    """Mean of Huber's function [n]: square up to `OUTLIER`, then straight."""
    away = np.abs(difference)
    return np.where(away < OUTLIER, 0.5 * away * away, OUTLIER * (away - 0.5 * OUTLIER)).mean(axis=1)


def feelings(frames: np.ndarray, setting: avatar.Scene, best: np.ndarray) -> list[str]:
    """The emotion of each frame uint8 [n, H, W, 3]: the one whose drawing comes nearest, beginning at `best` [n, 7]."""
    goal, size = frames.reshape(len(frames), -1).astype(np.float32), frames.shape[1]
    left = [_descend(goal, replace(setting, emotion=e), best, size, FEELING_ROUNDS)[1] for e in EMOTIONS]
    return [EMOTIONS[i] for i in np.argmin(left, axis=0)]


def blinks(lids: np.ndarray) -> int:
    """How often eyes closed: runs of frames with the lids [n] more than half down."""
    closed = lids > 0.5
    return int(closed[0]) + int((closed[1:] & ~closed[:-1]).sum())
