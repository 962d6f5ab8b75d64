"""A first-person walk through an endless maze: seeded, with the camera's truth for every frame.

    clip = sample(seed=7, frames=48)   # clip.frames: uint8 [48, 64, 64, 3], clip.actions, clip.poses

Frame i shows the world after action i. Walls are found by casting a ray for every column; edges and textures are
smoothed by how much of them a pixel covers, so that motion is fluid at 64x64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.maze import Maze, Player, entrance, hash_cells, keys, walk

TIMES = ("day", "night")
# Mazes with these numbers are never trained on.
HELD_OUT = range(1000)
CHUNK = 16
# Half the picture's width and height over the distance at which they are seen: a field of view of 74 degrees.
SPREAD = 0.75
FAR = 9.0
WALLS = np.array([[178, 96, 72], [108, 132, 164], [192, 168, 110], [120, 150, 96], [158, 116, 160]], np.float32)


@dataclass(frozen=True)
class Scene:
    """Which maze, and whether it is day or night there."""

    maze: int
    time: str

    @property
    def prompt(self) -> str:
        """The text that asks for this."""
        return f"a maze by {self.time}"


@dataclass(frozen=True)
class WorldClip:
    """Frames uint8 [n, H, W, 3] and their truth, one row a frame.

    Attributes:
        actions: [n] the class asked for (`maze.ACTIONS`).
        motion: [n] the class that really happened: `none` where a wall was in the way.
        poses: [n, 3] x and y (cells) and heading (radians, counter-clockwise) shown in the frame.
    """

    frames: np.ndarray
    scene: Scene
    actions: np.ndarray
    motion: np.ndarray
    poses: np.ndarray


def scene(seed: int, held_out: bool = False) -> Scene:
    """A random scene. Training draws from an endless range of mazes, evaluation from `HELD_OUT`."""
    rng = np.random.default_rng((seed, 0x3A2E))
    number = int(rng.integers(len(HELD_OUT)) if held_out else rng.integers(len(HELD_OUT), 1 << 40))
    return Scene(number, str(rng.choice(TIMES)))


def sample(seed: int, frames: int, size: int = 64, held_out: bool = False) -> WorldClip:
    """A clip of a player wandering from a random entrance of the random scene of `seed`."""
    setting = scene(seed, held_out)
    rng = np.random.default_rng((seed, 0x3A1C))
    maze = Maze(setting.maze)
    pose = entrance(maze, rng)
    if rng.random() < 0.2:
        # Some players do not look where they go.
        return perform(setting, keys(seed, frames), pose, size)
    actions, poses, motion = Player(maze, rng).walk(pose, frames)
    return WorldClip(render(setting, poses, size), setting, actions, motion, poses)


def perform(setting: Scene, actions: np.ndarray, pose: np.ndarray, size: int = 64) -> WorldClip:
    """A clip of these actions [n], from `pose` [3] on."""
    poses, motion = walk(Maze(setting.maze), np.asarray(pose, np.float64), actions)
    return WorldClip(render(setting, poses, size), setting, np.asarray(actions), motion, poses)


def render(setting: Scene, poses: np.ndarray, size: int = 64) -> np.ndarray:
    """Frames uint8 [n, size, size, 3] seen from these poses [n, 3]."""
    pixels = np.empty((len(poses), size, size, 3), np.uint8)
    # A few frames at a time stay in the processor's cache.
    for lo in range(0, len(poses), CHUNK):
        pixels[lo : lo + CHUNK] = _render(setting, np.asarray(poses[lo : lo + CHUNK], np.float64), size)
    return pixels


def cast(maze: Maze, poses: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the rays of every column meet a wall.

    Args:
        poses: [n, 3].
        columns: [w] from -1 (left edge) to 1.

    Returns:
        Four arrays [n, w]: distance along the view axis (at most `FAR`), how far along the wall's face (0 ... 1),
        whether the face looks along y, and a hash of the wall's cell.
    """
    x, y, heading = (poses[:, i, None] for i in range(3))
    rx = np.cos(heading) + columns * SPREAD * np.sin(heading)
    ry = np.sin(heading) - columns * SPREAD * np.cos(heading)
    # Walls nearby, looked up once for all rays.
    low = np.floor(poses[:, :2].min(axis=0)).astype(np.int64) - 14
    high = np.floor(poses[:, :2].max(axis=0)).astype(np.int64) + 15
    cells = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    walls, marks = maze.solid(*cells), hash_cells(maze.seed, *cells, salt=2)
    # Crossing one cell's edge after another, whichever is nearer.
    cx, cy = (np.broadcast_to(np.floor(p).astype(np.int64), rx.shape) for p in (x, y))
    sx, sy = np.where(rx < 0, -1, 1), np.where(ry < 0, -1, 1)
    ax, ay = 1 / np.maximum(np.abs(rx), 1e-9), 1 / np.maximum(np.abs(ry), 1e-9)
    tx = np.where(rx < 0, x - cx, cx + 1 - x) * ax
    ty = np.where(ry < 0, y - cy, cy + 1 - y) * ay
    distance, along_y = np.full(rx.shape, FAR), np.zeros(rx.shape, bool)
    going = np.ones(rx.shape, bool)
    for _ in range(24):
        across = tx < ty
        reached = np.where(across, tx, ty)
        cx, cy = np.where(going & across, cx + sx, cx), np.where(going & ~across, cy + sy, cy)
        tx, ty = np.where(across, tx + ax, tx), np.where(across, ty, ty + ay)
        going &= reached < FAR
        hit = going & walls[cx - low[0], cy - low[1]]
        distance = np.where(hit, reached, distance)
        along_y = np.where(hit, ~across, along_y)
        going &= ~hit
        if not going.any():
            break
    place = np.where(along_y, x + distance * rx, y + distance * ry)
    return distance, place - np.floor(place), along_y, marks[cx - low[0], cy - low[1]]


def _render(setting: Scene, poses: np.ndarray, size: int) -> np.ndarray:
    night = setting.time == "night"
    # Twice the columns, averaged in pairs: vertical edges come out smooth.
    columns = ((np.arange(2 * size) + 0.5) / size) - 1
    rows = (((np.arange(size) + 0.5) / size) * 2 - 1).astype(np.float32)[None, :, None]
    hits = cast(Maze(setting.maze), poses, columns)
    distance, along, along_y, mark = (a[:, None, :] for a in hits)
    distance = distance.astype(np.float32)
    edge = np.float32(0.5 / SPREAD) / distance
    inside = np.clip((edge - np.abs(rows)) * (size / 2) + 0.5, 0, 1)
    walls = _walls(rows, distance, along.astype(np.float32), along_y, mark, size)
    ground, sky = _ground(rows, poses, columns, size), _sky(rows, poses, columns, night)
    haze = np.clip(1 - distance / FAR, 0, 1) ** (1.2 if night else 0.6)
    fog = (10, 12, 26) if night else (196, 214, 228)
    light = np.where(along_y, 0.78, 1.0).astype(np.float32) * (0.62 if night else 1.0)
    near = np.minimum(np.float32(0.5 / SPREAD) / np.maximum(np.abs(rows), 1e-3), FAR)
    depth = np.clip(1 - near / FAR, 0, 1) ** (1.2 if night else 0.6) * np.ones_like(distance)
    out = np.empty((len(poses), size, size, 3), np.float32)
    for channel in range(3):
        wall = fog[channel] + haze * (walls[channel] * light - fog[channel])
        floor = fog[channel] + depth * (ground[channel] * (0.55 if night else 1.0) - fog[channel])
        behind = np.where(rows > 0, floor, sky[channel])
        mixed = behind + inside * (wall - behind)
        out[..., channel] = 0.5 * (mixed[..., 0::2] + mixed[..., 1::2])
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _band(position: np.ndarray, half: float, footprint: np.ndarray) -> np.ndarray:
    """Share of a pixel on lines of half-width `half` at every integer; fades out where pixels cover whole periods."""
    away = np.abs(position - np.rint(position))
    soft = np.clip((half - away) / np.maximum(footprint, 1e-3) + 0.5, 0, 1)
    return soft * np.clip(1.5 - 2 * footprint, 0, 1)


def _walls(rows, distance, along, along_y, mark, size: int) -> list[np.ndarray]:
    """Brick or panels in the wall's own colour, per channel [n, H, 2 W]."""
    scale = distance * np.float32(SPREAD * 2 / size)
    height = rows * distance * np.float32(SPREAD) + 0.5
    style = (mark >> np.uint64(8)) % np.uint64(3)
    course = np.floor(height * 5)
    bricks = np.maximum(_band(height * 5, 0.09, 5 * scale), _band(along * 2 + 0.5 * (course % 2), 0.05, 3 * scale))
    panels = np.maximum(_band(along * 3, 0.12, 4 * scale), _band(height + 0 * along, 0.08, scale))
    # A plain wall with a round mark in its middle: something to find one's way by.
    spot = np.clip((0.28 - np.hypot(along - 0.5, height - 0.5)) / np.maximum(1.2 * scale, 1e-3) + 0.5, 0, 1)
    pattern = np.where(style == 0, bricks, np.where(style == 1, panels, spot))
    tint = (mark % np.uint64(len(WALLS))).astype(np.int64)
    strength = np.where(style == 2, 0.45, -0.38).astype(np.float32)
    gain = 1 + strength * pattern
    return [WALLS[:, channel][tint] * gain for channel in range(3)]


def _ground(rows, poses: np.ndarray, columns: np.ndarray, size: int) -> list[np.ndarray]:
    """Square tiles, per channel [n, H, 2 W]; only rows below the middle are meant."""
    reach = (0.5 / SPREAD) / np.maximum(rows, 0.5 / size)
    x, y, heading = (poses[:, i, None, None] for i in range(3))
    # Only the place within a period of the pattern matters, so an endless walk loses no precision in float32.
    x, y = (x % 1).astype(np.float32), (y % 1).astype(np.float32)
    cos, sin, across = np.cos(heading), np.sin(heading), (columns * SPREAD)[None, None, :]
    gx = x + reach * (cos + across * sin).astype(np.float32)
    gy = y + reach * (sin - across * cos).astype(np.float32)
    footprint = reach * reach * np.float32(SPREAD * 2 / size * 2)
    wave = np.sin(2 * np.pi * gx) * np.sin(2 * np.pi * gy)
    checker = np.clip(wave * (2.5 / np.maximum(1, 2 * footprint)), -1, 1) * np.clip(1.4 - 1.6 * footprint, 0, 1)
    return [np.float32(base) * (1 + np.float32(0.26) * checker) for base in (128, 122, 112)]


def _sky(rows, poses: np.ndarray, columns: np.ndarray, night: bool) -> list[np.ndarray]:
    """A gradient, and a sun or moon that stays where it is when the camera turns; per channel [n, H, 2 W]."""
    top, horizon, disc = (
        ((8, 10, 30), (26, 30, 62), (226, 228, 214))
        if night
        else (
            (82, 142, 220),
            (190, 214, 236),
            (255, 244, 190),
        )
    )
    fall = np.clip(-rows, 0, 1)
    bearing = poses[:, 2, None, None] - np.arctan(columns * SPREAD)[None, None, :]
    away = np.arctan2(np.sin(bearing - 0.9), np.cos(bearing - 0.9)) / SPREAD
    cover = np.clip((0.13 - np.hypot(away, rows + 0.62)) * 16 + 0.5, 0, 1).astype(np.float32)
    planes = [h + fall * (t - h) for t, h in zip(top, horizon, strict=True)]
    return [plane + cover * (d - plane) for plane, d in zip(planes, disc, strict=True)]
