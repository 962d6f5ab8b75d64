"""Where a camera is in every video frame: driven by what is pressed, in an array, or as lines say (`pose_lines.py`).

A source of poses answers for the frames of one chunk after the other, each time with the frame before them as well. A
pose that was said is given as it was said. Before the first and behind the last, those hold. An array of poses is an
`.npy` of [frames, 4, 4], with `intrinsics.npy`, [4] or [frames, 4], beside it if there is any; or a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf import disk
from conf.errors import UserError
from stages.controls import Row
from stages.inputs import Views
from stages.sources.tensors import INTRINSICS, POSES, TensorsFile
from stages.views import EXAMPLE, REMEDY, identity, lens, misfit, scaled, unscaled

BLOCK = 4096
"""Poses of an array that are checked at a time."""
DIGITS = 6
"""Of a pixel: intrinsics that were scaled come back to as many."""
FILE = f"give an .npy of [frames, 4, 4], or lines like {EXAMPLE}"


class Poses:
    """A source of poses.

    Attributes:
        name: what it is read for.
        finite: whether a stream that has no other source ends with it.
        ended: whether the last pose holds behind the frames that were taken last.
        fresh: whether something was said of these frames, or of later ones.
        silent: whether it ended before anything came.
        recorded: whether what it says is recorded; what is driven, and tensors, are had by other means.
        accepted: when the oldest pose came that is new in them, by `time.perf_counter`; None: none is, or no matter.
    """

    name = "source.camera"
    finite, ended, fresh, silent, recorded = True, False, True, False, True
    accepted: float | None = None

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """Of the frame before `first` and of `count` frames from there on; before frame 0 that of frame 0 stands.
        Calls go forward in time.

        Args:
            rows: of the controls, of these frames.
        """
        raise NotImplementedError

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from, beside the frame: plain values."""
        return {}

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """Go on from the progress of another, perhaps of another kind; `last` in it is the pose of the last frame.

        Args:
            again: whether it is of the same run, where what had ended has ended.
        """

    def close(self) -> None:
        """Release what it reads."""


class DrivenPoses(Poses):
    """Driven by what is pressed: frame 0 is where the world's axes are, and the controls' row of every frame moves the
    camera from there to the next frame. All in float64: an hour of frames is an hour of sums.

    Args:
        moves: from a pose and a row to the next pose.
        intrinsics: float64 [4], scaled, of all frames.
    """

    name, finite, recorded = "source.actions", False, False

    def __init__(self, moves: Callable[[np.ndarray, Any], np.ndarray], intrinsics: np.ndarray):
        self._moves, self._intrinsics = moves, intrinsics
        self._last = self._next = identity()
        """Of the last frame that was taken, and of the one that follows."""

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`."""
        poses, pose = [self._last], self._next
        for row in rows:
            poses.append(pose)
            pose = self._moves(pose, row)
        self._last, self._next = poses[-1], pose
        return Views(np.stack(poses), np.tile(self._intrinsics, (1 + count, 1)), list(rows))

    @property
    def progress(self) -> dict[str, Any]:
        """See `Poses`."""
        return {"last": self._last.tolist(), "next": self._next.tolist()}

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """See `Poses`."""
        if "last" in progress:
            self._last = np.array(progress["last"])
            self._next = np.array(progress.get("next", progress["last"]))


class ArrayPoses(Poses):
    """Of every frame, one after the other.

    Args:
        name: where they come from.
        poses: [n, 4, 4], of any kind of number, in memory or on disk.
        intrinsics: float64 [n, 4] or [4], scaled.
    """

    def __init__(self, name: str, poses: Any, intrinsics: np.ndarray):
        self.name, self._poses, self._intrinsics = name, poses, intrinsics

    def take(self, first: int, count: int, rows: Sequence[Row]) -> Views:
        """See `Poses`."""
        n = len(self._poses)
        self.ended, self.fresh = first + count >= n, first < n
        at = np.clip(np.arange(first - 1, first + count), 0, n - 1)
        seen = self._intrinsics[at] if self._intrinsics.ndim == 2 else np.tile(self._intrinsics, (len(at), 1))
        return Views(np.asarray(self._poses[at], np.float64), seen, list(rows))


def array_poses(name: str, poses: Any, intrinsics: Any, otherwise: np.ndarray) -> ArrayPoses:
    """Poses of every frame, as another program has written them.

    Args:
        name: where they come from.
        poses: an array that has to be [n, 4, 4].
        intrinsics: one that has to be [4] or [n, 4], in pixels; None: there is none.
        otherwise: float64 [4], scaled: where there is none.

    Raises:
        UserError: it is another, or one of the poses is none.
    """
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses) or poses.dtype.kind not in "fiu":
        raise UserError(name, f"is {list(poses.shape)} of {poses.dtype}, not [frames, 4, 4] of numbers", FILE)
    _check(name, poses)
    if intrinsics is None:
        return ArrayPoses(name, poses, otherwise)
    if intrinsics.shape not in ((4,), (len(poses), 4)) or intrinsics.dtype.kind not in "fiu":
        rule = f"is {list(intrinsics.shape)} of {intrinsics.dtype}, not [4] or [{len(poses)}, 4] of numbers"
        raise UserError(f"{name}: intrinsics", rule, "give fx, fy, cx, cy, once or for every frame")
    for at, values in enumerate(np.atleast_2d(intrinsics)):
        lens(f"{name}: intrinsics of frame {at}", values)
    return ArrayPoses(name, poses, scaled(intrinsics))


def recorded_poses(name: str, poses: np.ndarray, intrinsics: np.ndarray) -> ArrayPoses:
    """Poses float64 [n, 4, 4] that a stream was sampled with, and its intrinsics [n, 4], which are scaled already.

    Raises:
        UserError: they are none.
    """
    _check(name, poses)
    if len(intrinsics) != len(poses):
        raise UserError(name, f"has {len(poses)} poses and {len(intrinsics)} intrinsics", "give it as it was recorded")
    for at, pixels in enumerate(np.round(unscaled(intrinsics), DIGITS)):
        lens(f"{name}: intrinsics of frame {at}", pixels)
    return ArrayPoses(name, poses, intrinsics)


def _check(name: str, poses: Any) -> None:
    for start in range(0, len(poses), BLOCK):
        if said := misfit(np.asarray(poses[start : start + BLOCK], np.float64)):
            raise UserError(f"{name}: pose of frame {start + said[0]}", said[1], REMEDY)


def npy_poses(path: str | Path, otherwise: np.ndarray) -> ArrayPoses:
    """Poses of an `.npy`, read as they are needed; it is checked to its end first.

    Args:
        path: the file; `intrinsics.npy` beside it is read as well.
        otherwise: intrinsics where that is not there, float64 [4], scaled.

    Raises:
        UserError: it is missing, or none.
    """
    beside = Path(path).with_name("intrinsics.npy")
    intrinsics = _array(f"source.camera={path}: {beside.name}", beside) if beside.exists() else None
    return array_poses(f"source.camera={path}", _array(f"source.camera={path}", path), intrinsics, otherwise)


def _array(name: str, path: str | Path) -> np.ndarray:
    disk.readable(name, path, FILE)
    try:
        with np.errstate(all="ignore"):
            return np.lib.format.open_memmap(path, "r")
    except Exception as error:  # whatever a broken file makes of a library
        raise UserError(name, "is no .npy of numbers, or is cut off", FILE) from error


def tensor_poses(tensors: TensorsFile, otherwise: np.ndarray) -> ArrayPoses | None:
    """Poses that `source.tensors` gives; None: it gives none. Arguments and errors as of `npy_poses`."""
    poses, intrinsics = (tensors.get(key, dtype=torch.float64) for key in (POSES, INTRINSICS))
    if poses is not None:
        name = f"source.tensors={tensors.path}: {POSES}"
        found = array_poses(name, poses.numpy(), None if intrinsics is None else intrinsics.numpy(), otherwise)
        found.recorded = False
        return found
    if intrinsics is not None:
        rule = f"means nothing without `{POSES}`"
        raise UserError(f"source.tensors={tensors.path}: {INTRINSICS}", rule, "give both, or source.intrinsics")
    return None
