"""Where a camera is and how it sees: what poses and intrinsics are, whether they are any, and what lies between two.

A pose is camera-to-world, a rigid 4x4 matrix: its columns are the camera's right (x), its down (y), its forward (z) and
its position, in the world of the stream. Intrinsics are fx, fy, cx, cy of a pinhole: as a user says them in pixels of a
picture of 832 x 480, whatever the stream's own size, and here in widths and heights of the picture.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from conf.errors import UserError
from conf.schema.stream import PICTURE, check_intrinsics

NINETY = (PICTURE[0] / 2, PICTURE[0] / 2, PICTURE[0] / 2, PICTURE[1] / 2)
"""Intrinsics where nothing says any: 90 degrees wide, square pixels, the axis through the picture's middle."""
TOLERANCE = 1e-3
"""By which a pose may miss being rigid, in each number: as much as one that was written with four digits."""
FURTHEST = 1e9
"""From the world's origin: steps between poses are float32 in a network, whatever they are divided by."""
CLOSE = 1e-7
"""Between rotations that are this close (1 minus the cosine of half the angle) a straight line is as good."""
REMEDY = "give camera-to-world matrices, [R | t] over 0 0 0 1, with x right, y down, z forward"
EXAMPLE = '{"frame": 40, "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]]}'


class View(NamedTuple):
    """Of one video frame.

    Attributes:
        pose: camera-to-world, float64 [4, 4].
        intrinsics: float64 [4], fx and cx in widths of the picture, fy and cy in heights, in the order fx, fy, cx, cy.
    """

    pose: np.ndarray
    intrinsics: np.ndarray


def identity() -> np.ndarray:
    """The pose of a camera that has not moved."""
    return np.eye(4)


def scaled(pixels: Any) -> np.ndarray:
    """Intrinsics [..., 4] in pixels of a picture of 832 x 480, in widths and heights."""
    return np.asarray(pixels, np.float64) / (*PICTURE, *PICTURE)


def unscaled(seen: np.ndarray) -> np.ndarray:
    """The same [..., 4] in pixels again."""
    return seen * (*PICTURE, *PICTURE)


def lens(name: str, pixels: Any) -> np.ndarray:
    """One frame's intrinsics as a user says them, scaled.

    Raises:
        UserError: they are none; `name` says where they stand.
    """
    values = _numbers(pixels)
    if values is None or values.shape != (4,):
        raise UserError(name, "are no four numbers", "give [fx, fy, cx, cy]")
    check_intrinsics(name, values.tolist())
    return scaled(values)


def whole(name: str, rows: Any) -> np.ndarray:
    """A pose as a user says it, 4 x 4 numbers or the upper 3 x 4, float64 [4, 4].

    Raises:
        UserError: it is none; `name` says where it stands.
    """
    found = _numbers(rows)
    if found is None or found.shape not in ((3, 4), (4, 4)):
        raise UserError(name, "is no matrix of 4 x 4 numbers, nor of 3 x 4", f"e.g. {EXAMPLE}")
    pose = np.vstack([found, identity()[3:]]) if len(found) == 3 else found
    if said := misfit(pose[None]):
        raise UserError(name, said[1], REMEDY)
    return pose


def _numbers(values: Any) -> np.ndarray | None:
    """Nested lists as float64; None where they are not, or hold other than numbers."""
    try:
        found = np.array(values)
    except ValueError:
        return None
    return found.astype(np.float64) if found.dtype.kind in "fiu" else None


def misfit(poses: np.ndarray) -> tuple[int, str] | None:
    """The first of poses [n, 4, 4] that is none, and why; None: all are."""
    turns = poses[:, :3, :3]
    with np.errstate(all="ignore"):
        square = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
        last = np.abs(poses[:, 3] - identity()[3]).max(1)
        mirrored = np.linalg.det(np.where(np.isfinite(turns), turns, 0.0)) < 0
    faults = (
        (~np.isfinite(poses).all((1, 2)), "holds a number that is not finite"),
        (~(np.abs(poses[:, :3, 3]).max(1) <= FURTHEST), f"is further than {FURTHEST:g} from the world's origin"),
        (~(last <= TOLERANCE), "has another last row than 0 0 0 1"),
        (~(square <= TOLERANCE), "does not turn: its first three columns are not at right angles, or not of length 1"),
        (mirrored, "is mirrored: its first three columns are left-handed"),
    )
    wrong = np.logical_or.reduce([found for found, _ in faults])
    if not wrong.any():
        return None
    at = int(wrong.argmax())
    return at, next(why for found, why in faults if found[at])


# -- between two poses ------------------------------------------------------------------------------------------------


def between(a: View, b: View, share: float) -> View:
    """What lies between two views, `share` of the way in (0, 1): the position and the intrinsics on a straight line,
    the rotation at an even speed about one axis, the shorter way (slerp; Shoemake 1985)."""
    pose, turns = a.pose.copy(), (a.pose[:3, :3], b.pose[:3, :3])
    if not np.array_equal(*turns):  # what stands still does so to the bit
        pose[:3, :3] = _rotation(_slerp(*map(_quaternion, turns), share))
    pose[:3, 3] = a.pose[:3, 3] + share * (b.pose[:3, 3] - a.pose[:3, 3])
    return View(pose, a.intrinsics + share * (b.intrinsics - a.intrinsics))


def _slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    cosine = float(a @ b)
    if cosine < 0:  # both signs are the same rotation
        b, cosine = -b, -cosine
    if cosine > 1 - CLOSE:
        mixed = a + share * (b - a)
    else:
        angle = math.acos(cosine)
        mixed = math.sin((1 - share) * angle) * a + math.sin(share * angle) * b
    return mixed / np.linalg.norm(mixed)


def _quaternion(turn: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation, by the largest of the four, so that no root is near 0 (Shepperd 1978)."""
    m, trace = turn, float(np.trace(turn))
    largest = int(np.argmax([trace, *np.diag(turn)]))
    if largest == 0:
        found = [1 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        found = [m[k, j] - m[j, k], 0.0, 0.0, 0.0]
        found[1 + i], found[1 + j], found[1 + k] = 1 + m[i, i] - m[j, j] - m[k, k], m[j, i] + m[i, j], m[k, i] + m[i, k]
    return np.array(found) / np.linalg.norm(found)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


# -- for people -------------------------------------------------------------------------------------------------------


def where(pose: np.ndarray) -> list[float]:
    """[x, y, z, yaw, pitch] of a pose: where the camera is, and where it looks, in degrees: yaw from z to the right,
    pitch up from the horizon. Rounded, and without -0.0, since people read it."""
    right, down, ahead = pose[:3, 2]
    yaw, pitch = math.atan2(right, ahead), math.atan2(-down, math.hypot(right, ahead))
    return [round(float(n), 4) + 0.0 for n in (*pose[:3, 3], math.degrees(yaw), math.degrees(pitch))]
