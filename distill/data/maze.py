"""An endless maze without a map, and somebody walking in it.

Cells are unit squares. Rooms lie where both coordinates are even, pillars where both are odd, and the cells between
are passages, open or walled by a hash of (seed, cell). Every room opens east or north, which joins all rooms into
one tree without end; some more passages are open at random, which makes loops and plazas.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ACTIONS = ("none", "forward", "back", "left", "right")
NONE, FORWARD, BACK, LEFT, RIGHT = range(5)
# Per video frame of 1/16 s: cells walked, radians turned. Half a second of turning is 32 degrees.
STEP = 0.09
TURN = np.deg2rad(4.0)
RADIUS = 0.22

_MASK = (1 << 64) - 1


def hash_cells(seed: int, x: np.ndarray, y: np.ndarray, salt: int = 0) -> np.ndarray:
    """A well-mixed uint64 for every cell, the same on any machine."""
    with np.errstate(over="ignore"):
        start = (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) & _MASK
        h = np.asarray(x, np.int64).astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(start)
        h = (h ^ (h >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        h = h + np.asarray(y, np.int64).astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
        h = (h ^ (h >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
        return h ^ (h >> np.uint64(29))


@dataclass
class Maze:
    """The walls of one seed. `extra` is the share of further passages that are open."""

    seed: int
    extra: float = 0.3
    _known: dict[tuple[int, int], bool] = field(default_factory=dict, repr=False)

    def solid(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether the cells with these integer coordinates are wall."""
        x, y = np.asarray(x, np.int64), np.asarray(y, np.int64)
        odd_x, odd_y = x & 1, y & 1
        # A passage belongs to the room west or south of it.
        room = hash_cells(self.seed, x - odd_x, y - odd_y)
        east = (room & np.uint64(1)).astype(bool)
        more = (hash_cells(self.seed, x, y, salt=1) >> np.uint64(11)) * 2.0**-53 < self.extra
        passage = np.where(odd_x == 1, east, ~east) | more
        return np.where(odd_x + odd_y == 1, ~passage, odd_x + odd_y == 2)

    def blocked(self, x: float, y: float) -> bool:
        """Whether a walker of `RADIUS` would touch a wall at this position."""
        return any(
            self._wall(int(np.floor(x + dx)), int(np.floor(y + dy)))
            for dx in (-RADIUS, RADIUS)
            for dy in (-RADIUS, RADIUS)
        )

    def _wall(self, x: int, y: int) -> bool:
        known = self._known.get((x, y))
        if known is None:
            # Forgetting is harmless (walls are a pure function), so the memory of an endless walk stays small.
            if len(self._known) > 4096:
                self._known.clear()
            known = self._known[(x, y)] = bool(self.solid(np.array(x), np.array(y)))
        return known

    def ahead(self, x: float, y: float, heading: float, reach: float = 3.0) -> float:
        """How far one can walk straight on, up to `reach`."""
        distance = 0.0
        while distance < reach and not self.blocked(
            x + (distance + 0.15) * np.cos(heading), y + (distance + 0.15) * np.sin(heading)
        ):
            distance += 0.15
        return distance


def entrance(maze: Maze, rng: np.random.Generator) -> np.ndarray:
    """A random room and heading [3] (x, y, radians), mostly with some way ahead."""
    for _ in range(12):
        room = 2 * rng.integers(-(1 << 20), 1 << 20, 2) + 0.5
        heading = rng.uniform(-np.pi, np.pi)
        if maze.ahead(*room, heading) > 0.9:
            break
    return np.array([*room, heading])


def move(maze: Maze, pose: np.ndarray, action: int) -> tuple[np.ndarray, int]:
    """The pose [3] after one video frame of `action`, and the class of what really happened.

    A walker who meets a wall at an angle slides along it; less than half a step is counted as standing still.
    """
    x, y, heading = pose
    if action == LEFT:
        return np.array([x, y, _wrap(heading + TURN)]), LEFT
    if action == RIGHT:
        return np.array([x, y, _wrap(heading - TURN)]), RIGHT
    if action == NONE:
        return pose.copy(), NONE
    sign = 1 if action == FORWARD else -1
    dx, dy = sign * STEP * np.cos(heading), sign * STEP * np.sin(heading)
    new_x = x if maze.blocked(x + dx, y) else x + dx
    new_y = y if maze.blocked(new_x, y + dy) else y + dy
    moved = np.hypot(new_x - x, new_y - y)
    return np.array([new_x, new_y, heading]), action if moved > 0.5 * STEP else NONE


def walk(maze: Maze, pose: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses [n, 3], each after its action, and what really happened [n]."""
    poses, done = np.empty((len(actions), 3)), np.empty(len(actions), np.int64)
    for i, action in enumerate(actions):
        pose, done[i] = move(maze, pose, int(action))
        poses[i] = pose
    return poses, done


@dataclass
class Player:
    """Holds keys as a person does: walks on while there is a way, turns towards one where there is none.

    Carries what is held from call to call, so a walk may be asked for piece by piece.
    """

    maze: Maze
    rng: np.random.Generator
    held: int = NONE
    left: int = 0

    def walk(self, pose: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions pressed [n], poses [n, 3] after each, and what really happened [n]."""
        pressed, done, poses = np.empty(frames, np.int64), np.empty(frames, np.int64), np.empty((frames, 3))
        for i in range(frames):
            if self.left <= 0:
                self._decide(pose)
            pressed[i] = self.held
            pose, done[i] = move(self.maze, pose, self.held)
            poses[i] = pose
            self.left -= 1
            # Most people let go soon after they bump into something.
            if done[i] == NONE and self.held != NONE and self.rng.random() < 0.4:
                self.left = 0
        return pressed, poses, done

    def _decide(self, pose: np.ndarray) -> None:
        rng, (x, y, heading) = self.rng, pose
        longest = {NONE: 20, FORWARD: 48, BACK: 24, LEFT: 20, RIGHT: 20}
        if self.maze.ahead(x, y, heading, reach=1.0) < 0.75 and rng.random() < 0.85:
            # Turn to the first open way on one side, or a little past it.
            side = LEFT if rng.random() < 0.5 else RIGHT
            sign = 1 if side == LEFT else -1
            angles = np.deg2rad(np.arange(15, 195, 15))
            way = next((a for a in angles if self.maze.ahead(x, y, heading + sign * a, 1.3) > 1.1), angles[-1])
            self.held, self.left = side, int(np.ceil(way / TURN)) + int(rng.integers(5))
            return
        chances = [0.12, 0.62, 0.12, 0.07, 0.07] if self.held in (LEFT, RIGHT) else [0.18, 0.36, 0.2, 0.13, 0.13]
        self.held = int(rng.choice(5, p=chances))
        self.left = int(rng.integers(3, longest[self.held] + 1))


def keys(seed: int, frames: int) -> np.ndarray:
    """Actions [frames] held as a person holds keys, chosen without looking at any maze."""
    rng = np.random.default_rng((seed, 0x4E75))
    actions = np.empty(frames, np.int64)
    at = 0
    while at < frames:
        held = int(rng.integers(3, 30))
        actions[at : at + held] = rng.choice(5, p=[0.12, 0.44, 0.1, 0.17, 0.17])
        at += held
    return actions


def _wrap(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi
