"""A player of the maze who sees only the picture: walks where there is floor and never presses on against a wall.

In a maze that a model dreams nobody knows where the walls are, so whether `forward` should have moved the camera is
only clear where the way is open. Floor is grey and walls are coloured, so the saturation of a column, from the bottom
up, tells where its wall stands and, walls being of one height, how far away.
"""

from __future__ import annotations

import numpy as np

from distill.data.maze import BACK, FORWARD, LEFT, NONE, RADIUS, RIGHT, STEP, TURN
from distill.data.world import FAR, SPREAD

# Saturation above which a pixel is wall (floor has 0.15 at most, the palest wall 0.25).
WALL = 0.18
NEAREST = 0.5 / SPREAD
"""A wall nearer than this leaves no floor in the picture."""
# How near a wall the player goes, beyond the walker's own radius, and the half-width of the way it wants to be free.
MARGIN, SHOULDER = 0.45, 0.3
SHORTEST, LONGEST = 4, 16
OPEN = 8
"""Steps of a way that is worth turning to."""


def distances(frame: np.ndarray) -> np.ndarray:
    """How far the wall in each column [W] of a frame uint8 [H, W, 3] is, in cells.

    Where there is no floor it is `NEAREST`.
    """
    pixels = frame.astype(np.float32)
    high = pixels.max(axis=2)
    saturation = (high - pixels.min(axis=2)) / (high + 8)
    half, rows = frame.shape[0] // 2, frame.shape[0] - frame.shape[0] // 2
    floor = saturation[half:][::-1] < WALL
    # Unbroken floor from the bottom up.
    count = np.where(floor.all(axis=0), rows, floor.argmin(axis=0))
    base = (rows - count + 0.5) / rows
    return np.where(count == 0, NEAREST, np.minimum(NEAREST / np.minimum(base, 1), FAR))


def reach(far: np.ndarray, angle: float = 0.0) -> float:
    """How far one can see to walk straight on, after a turn by `angle` (radians, to the right), between walls at
    distances `far` [W]."""
    column = (np.arange(len(far)) + 0.5) / len(far) * 2 - 1
    ahead, aside = far, column * SPREAD * far
    cos, sin = np.cos(angle), np.sin(angle)
    depth, lateral = ahead * cos + aside * sin, aside * cos - ahead * sin
    within = (np.abs(lateral) < SHOULDER) & (depth > 0)
    return float(depth[within].min()) if within.any() else 0.0


class Sighted:
    """Holds keys as a person does, with all five actions as often as the way allows.

    Args:
        seed: of its choices.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng((seed, 0x516))
        self.held, self.left, self.side = NONE, 0, LEFT
        self.room, self.behind, self.then = 0, 0, 0
        """Frames that one can walk on, and back; and on after the turn that is under way."""

    def press(self, frames: int, seen: np.ndarray | None) -> np.ndarray:
        """Actions [frames], after having seen the last chunk's frames [n, H, W, 3] (None: nothing yet)."""
        far = None if seen is None else distances(seen[-1])
        self.room = 0 if far is None else _frames(reach(far))
        if self.held in (LEFT, RIGHT):
            self.left = 0
        pressed = np.empty(frames, np.int64)
        for i in range(frames):
            stuck = (self.held == FORWARD and self.room <= 0) or (self.held == BACK and self.behind <= 0)
            if self.left <= 0 or stuck:
                self._decide(far)
            pressed[i] = self.held
            self.left -= 1
            if self.held == FORWARD:
                self.room, self.behind, far = self.room - 1, self.behind + 1, None
            elif self.held == BACK:
                self.room, self.behind, far = self.room + 1, self.behind - 1, None
            elif self.held != NONE:
                # Behind it is not known what there is now, nor ahead before the turn has ended.
                self.room, self.behind, far = self.then if self.left <= 0 else 0, 0, None
        return pressed

    def _decide(self, far: np.ndarray | None) -> None:
        rng, self.left, self.then = self.rng, int(self.rng.integers(SHORTEST, LONGEST + 1)), 0
        if far is not None and self.room < OPEN:
            # Little way ahead: turn to the longest one in sight, or on in one direction until there is one.
            angles = np.arange(-8, 9) * TURN
            ways = np.array([_frames(reach(far, angle)) for angle in angles])
            turn = int(ways.argmax()) - 8
            if ways.max() >= OPEN and turn:
                self.held, self.left, self.then = (RIGHT if turn > 0 else LEFT), abs(turn), int(0.8 * ways.max())
            else:
                self.side = self.held if self.held in (LEFT, RIGHT) else self.side
                self.held = self.side
            return
        chances = {FORWARD: 0.66 * (self.room >= SHORTEST), BACK: 0.3 * (self.behind >= SHORTEST), NONE: 0.12}
        chances |= {LEFT: 0.06, RIGHT: 0.06}
        weights = np.array([chances[action] for action in range(5)])
        self.held = int(rng.choice(5, p=weights / weights.sum()))
        if self.held in (LEFT, RIGHT):
            self.side = self.held


def _frames(distance: float) -> int:
    """Steps towards a wall at a distance that end before it."""
    return int(max(0.0, distance - RADIUS - MARGIN) / STEP)
