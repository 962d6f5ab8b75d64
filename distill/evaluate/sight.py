"""A player of the maze who sees only the picture: walks where there is floor and never presses on against a wall.

In a maze that a model dreams nobody knows where the walls are, so whether `forward` should have moved the camera is
only clear where the way is open. Floor is grey and walls are coloured, so the saturation of a column, from the bottom
up, tells where its wall stands and, walls being of one height, how far away.
"""

from __future__ import annotations

import numpy as np

from distill.data.maze import BACK, FORWARD, LEFT, NONE, RADIUS, RIGHT, STEP
from distill.data.world import FAR, SPREAD

# Saturation above which a pixel is wall (floor has 0.15 at most, the palest wall 0.25).
WALL = 0.18
NEAREST = 0.5 / SPREAD
"""A wall nearer than this leaves no floor in the picture."""
# How near a wall the player goes, beyond the walker's own radius, and the half-width of the way it wants to be free.
MARGIN, SHOULDER = 0.45, 0.3
SHORTEST, LONGEST = 4, 16


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


def reach(far: np.ndarray) -> float:
    """How far one can see to walk straight ahead between walls at distances `far` [W]."""
    column = (np.arange(len(far)) + 0.5) / len(far) * 2 - 1
    ahead = np.abs(column) * SPREAD * far < SHOULDER
    return float(far[ahead].min()) if ahead.any() else FAR


class Sighted:
    """Holds keys as a person does, with all five actions about as often as the way allows.

    Args:
        seed: of its choices.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng((seed, 0x516))
        self.held, self.left, self.behind = NONE, 0, 0

    def press(self, frames: int, seen: np.ndarray | None) -> np.ndarray:
        """Actions [frames], after having seen the last chunk's frames [n, H, W, 3] (None: nothing yet)."""
        far = None if seen is None else distances(seen[-1])
        room = 0 if far is None else int(max(0.0, reach(far) - RADIUS - MARGIN) / STEP)
        pressed = np.empty(frames, np.int64)
        for i in range(frames):
            if self.left <= 0 or (self.held == FORWARD and room <= 0) or (self.held == BACK and self.behind <= 0):
                self._decide(far, room)
            pressed[i] = self.held
            self.left -= 1
            if self.held == FORWARD:
                room, self.behind = room - 1, self.behind + 1
            elif self.held == BACK:
                room, self.behind = room + 1, self.behind - 1
            elif self.held != NONE:
                # After a turn it is not known what is ahead or behind.
                room = self.behind = 0
                far = None
        return pressed

    def _decide(self, far: np.ndarray | None, room: int) -> None:
        rng, last = self.rng, self.held
        able = {NONE: 0.14, FORWARD: 0.4 * (room >= SHORTEST), BACK: 0.2 * (self.behind >= SHORTEST)}
        turn = 0.26
        if far is not None:
            open_left, open_right = np.median(far[: len(far) // 2]), np.median(far[len(far) // 2 :])
            share = open_left / (open_left + open_right)
        else:
            # Turn on the way it was turning, or not at all.
            share = {LEFT: 0.9, RIGHT: 0.1}.get(last, 0.5)
        able |= {LEFT: turn * share, RIGHT: turn * (1 - share)}
        if room < SHORTEST and last not in (LEFT, RIGHT):
            able[NONE] *= 0.5
        weights = np.array([able[action] for action in range(5)])
        self.held = int(rng.choice(5, p=weights / weights.sum()))
        self.left = int(rng.integers(SHORTEST, LONGEST + 1))
