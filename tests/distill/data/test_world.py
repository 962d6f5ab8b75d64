"""The maze: repeatable, endless, walls that hold, and poses true to what is shown."""

import numpy as np

from distill.data import maze, world
from distill.data.maze import BACK, FORWARD, LEFT, NONE, RIGHT, Maze, Player, entrance


def test_same_seed_same_frames():
    a, b, c = (world.sample(seed, 8) for seed in (3, 3, 4))
    assert a.frames.shape == (8, 64, 64, 3) and a.frames.dtype == np.uint8
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
    assert not np.array_equal(a.frames, c.frames)


def test_nobody_walks_through_walls():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labyrinth = Maze(seed)
        pose = entrance(labyrinth, rng)
        # Not a careful player: random keys, pushed into every wall.
        poses, _ = maze.walk(labyrinth, pose, maze.keys(seed, 1500))
        near = np.array([[dx, dy] for dx in (-0.2, 0, 0.2) for dy in (-0.2, 0, 0.2)])
        cells = np.floor(poses[:, None, :2] + near).astype(int)
        assert not labyrinth.solid(cells[..., 0], cells[..., 1]).any()


def test_motion_is_what_happened():
    labyrinth = Maze(11)
    rng = np.random.default_rng(11)
    pose = entrance(labyrinth, rng)
    actions, poses, motion = Player(labyrinth, rng).walk(pose, 2000)
    before = np.concatenate([pose[None], poses[:-1]])
    step, turn = poses[:, :2] - before[:, :2], (poses[:, 2] - before[:, 2] + np.pi) % (2 * np.pi) - np.pi
    along = step[:, 0] * np.cos(before[:, 2]) + step[:, 1] * np.sin(before[:, 2])
    assert np.allclose(turn[motion == LEFT], maze.TURN) and np.allclose(turn[motion == RIGHT], -maze.TURN)
    assert (along[motion == FORWARD] > 0).all() and (along[motion == BACK] < 0).all()
    assert np.abs(turn[motion == NONE]).max() < 1e-9
    assert np.hypot(*step[motion == NONE].T).max() <= 0.5 * maze.STEP
    assert ((motion == actions) | (motion == NONE)).all()
    # A person's keys: every action is used, and most are held for a while.
    assert len(np.unique(actions)) == 5
    assert len(actions) / (1 + np.count_nonzero(np.diff(actions))) > 4


def test_player_continues_where_it_was():
    labyrinth = Maze(2)

    def run(parts):
        rng = np.random.default_rng(2)
        pose = entrance(labyrinth, rng)
        player, poses = Player(labyrinth, rng), []
        for part in parts:
            poses.append(player.walk(pose, part)[1])
            pose = poses[-1][-1]
        return np.concatenate(poses)

    assert np.array_equal(run([60]), run([7, 50, 3]))


def test_every_room_has_a_way_out_anywhere():
    for corner in (0, -1000, 10**12):
        rooms = np.stack(np.meshgrid(*[2 * np.arange(30) + corner] * 2), axis=-1).reshape(-1, 2)
        x, y = rooms.T
        labyrinth = Maze(5)
        assert not labyrinth.solid(x, y).any()
        assert not (labyrinth.solid(x + 1, y) & labyrinth.solid(x, y + 1)).any()
        assert labyrinth.solid(x + 1, y + 1).all()


def test_turning_left_moves_the_picture_right():
    setting = world.Scene(7, "day")
    labyrinth = Maze(7)
    pose = entrance(labyrinth, np.random.default_rng(1))
    before = world.render(setting, pose[None])[0].astype(float)
    after = world.perform(setting, np.array([LEFT]), pose).frames[0].astype(float)
    # A turn of 4 degrees is about 3 pixels in the middle of a picture 74 degrees wide.
    middle = slice(16, 48)
    error = {s: np.abs(np.roll(after, s, axis=1) - before)[:, middle].mean() for s in (-4, -3, -2, 0, 2, 3, 4)}
    assert min(error, key=error.get) in (-4, -3, -2)


def test_night_is_darker_and_asked_for():
    pose = entrance(Maze(3), np.random.default_rng(3))[None]
    day, night = (world.render(world.Scene(3, time), pose).mean() for time in world.TIMES)
    assert night < 0.6 * day
    assert world.Scene(3, "night").prompt == "a maze by night"


def test_held_out_mazes_are_apart():
    assert all(world.scene(seed).maze not in world.HELD_OUT for seed in range(50))
    assert all(world.scene(seed, held_out=True).maze in world.HELD_OUT for seed in range(50))
