"""From keys to poses: how a camera moves from one video frame to the next.

In float64 throughout, since a pose is a sum over all that was pressed. Axes are OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stages.controls import Controls

CONTROLS = Controls(("forward", "left", "back", "right", "look_up", "look_left", "look_down", "look_right"))
"""W A S D and I J K L, held in any number together."""
MOVE = 0.05
"""Of a video frame."""
TURN = math.radians(2.0)
"""Likewise."""
HIGHEST = math.radians(85.0)
"""How far a camera looks up or down; a key that would pass that does nothing."""
LEAST = 1e-6
"""Added to the length that a direction is divided by."""


def moved(pose: np.ndarray, row: Sequence[float]) -> np.ndarray:
    """The pose of the next video frame: R <- Ry(yaw) R Rx(pitch), and then a step on the ground.

    The camera turns about the world's vertical and about its own x; it steps along its own z and x, of which what
    points up or down is left out, so that looking up or down makes it no slower.

    Args:
        pose: camera-to-world, float64 [4, 4].
        row: how far each key is held, 0 to 1, in the order of `CONTROLS`.
    """
    forward, left, back, right, up, turn_left, down, turn_right = row
    now = pose.copy()
    pitch = TURN * (up - down)
    if _beyond(pose, pitch):
        pitch = 0.0
    turn = _about_y(TURN * (turn_right - turn_left)) @ pose[:3, :3] @ _about_x(pitch)
    now[:3, :3] = turn
    now[:3, 3] += MOVE * ((forward - back) * _level(turn[:, 2]) + (right - left) * _level(turn[:, 0]))
    return now


def _beyond(pose: np.ndarray, pitch: float) -> bool:
    """Whether turning would look further up or down than is allowed, and than now."""
    x, y, z = pose[:3, 2]
    now = math.atan2(-y, math.hypot(x, z))
    return abs(now + pitch) > max(HIGHEST, abs(now))


def _level(direction: np.ndarray) -> np.ndarray:
    """What of a direction is on the ground, of length 1."""
    flat = direction * (1.0, 0.0, 1.0)
    return flat / (np.linalg.norm(flat) + LEAST)


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
