"""What the estimators read in the generator's own pictures is what the generator drew."""

from dataclasses import replace

import numpy as np
import pytest

from distill.data import avatar, sound, world
from distill.data.maze import BACK, FORWARD, LEFT, NONE, RIGHT, Maze, entrance, walk
from distill.evaluate import camera, drift, faces, gallery, portrait, sight


@pytest.fixture(scope="module")
def talk():
    return faces.Talk(3, 4, 12)


@pytest.fixture(scope="module")
def observer():
    return faces.Observer(gallery.Gallery([scene.identity for scene in faces.cast(10)]))


def test_a_portrait_is_read_as_it_was_drawn(talk, observer):
    clip = talk.truth(32)
    found = observer.read(clip.frames, talk)
    assert np.corrcoef(found["openness"], clip.mouth[:, 0])[0, 1] > 0.98
    assert found["person"].all() and found["background"].all() and found["emotion"].all()
    assert portrait.blinks(found["lids"]) == portrait.blinks(clip.blink)


def test_a_wrong_face_is_told(talk, observer):
    other = replace(talk.scene, identity=faces.cast(6)[5].identity, background="green", emotion="angry")
    clip = avatar.perform(other, 8, talk.mouth[:8])
    found = observer.read(clip.frames, talk)
    assert not found["person"].any() and not found["background"].any()


def test_a_late_mouth_has_its_lag():
    truth = sound.mouth(sound.clip(5, 80, held_out=True))[:, 0]
    late = np.concatenate([np.zeros(2, np.float32), truth[:-2]])
    by_lag = faces.follows(late, truth)
    assert faces.LAGS[int(by_lag.argmax())] == 2 and by_lag.max() > 0.999


def test_the_camera_is_read_as_it_moved():
    right = total = 0
    for seed in (4, 9):
        clip = world.sample(seed, 28, 64, held_out=True)
        found = camera.motion(clip.frames)
        right, total = right + (found == clip.motion[1:]).sum(), total + len(found)
    assert right / total >= 0.98


def test_every_action_is_told_in_the_open():
    maze = Maze(11)
    pose = entrance(maze, np.random.default_rng(0))
    for action in (NONE, FORWARD, BACK, LEFT, RIGHT):
        poses, done = walk(maze, pose, np.array([FORWARD, FORWARD, action, action]))
        frames = world.render(world.Scene(11, "day"), poses)
        assert camera.motion(frames)[-1] == done[-1] == action


def test_the_player_sees_walls_and_never_bumps_into_them():
    setting, player = world.Scene(5, "night"), sight.Sighted(1)
    maze, seen, bumps, pressed = Maze(5), None, 0, []
    pose = entrance(maze, np.random.default_rng(2))
    for _ in range(40):
        keys = player.press(12, seen)
        poses, done = walk(maze, pose, keys)
        bumps += (done != keys).sum()
        pose, pressed = poses[-1], [*pressed, *keys]
        seen = world.render(setting, poses[-1:])
    assert bumps <= 5
    assert all(pressed.count(action) >= 10 for action in range(5))


def test_a_slope_is_percent_of_the_first_segment_per_minute():
    assert drift.slope(np.array([50.0, 51.0, 52.0]), 1.0) == pytest.approx(2.0)
    assert drift.slope(np.array([50.0, 51.0, 52.0]), 0.5) == pytest.approx(4.0)
    segments = drift.Segments(4, 8.0)
    frames = np.full((14, 8, 8, 3), 51, np.uint8)
    segments.add(frames[:5])
    segments.add(frames[5:])
    assert segments.values()["mean"] == pytest.approx([0.2, 0.2, 0.2])
    assert segments.slopes()["mean"] == pytest.approx(0.0, abs=1e-6)
