"""The drawn talking head: repeatable, endless, and true to the numbers it reports."""

import numpy as np
import pytest

from distill.data import avatar, people, sound


def still(setting: avatar.Scene, openness: float, size: int = 64) -> np.ndarray:
    zero = np.zeros((1, 4), np.float32)
    return avatar.render(setting, np.array([[openness, 0.5]]), zero, np.zeros(1), size)[0].astype(int)


def test_same_seed_same_frames_and_other_seed_others():
    mouth = sound.babble(3, 12)
    a, b, c = (avatar.sample(seed, 12, mouth) for seed in (3, 3, 4))
    assert a.frames.shape == (12, 64, 64, 3) and a.frames.dtype == np.uint8
    assert np.array_equal(a.frames, b.frames)
    assert not np.array_equal(a.frames, c.frames)


def test_a_clip_can_start_anywhere():
    mouth = sound.babble(5, 40)
    whole = avatar.sample(5, 40, mouth, start=1000)
    part = avatar.sample(5, 10, mouth[20:30], start=1020)
    assert np.array_equal(whole.frames[20:30], part.frames)
    assert np.array_equal(whole.blink[20:30], part.blink)


@pytest.mark.parametrize("emotion", people.EMOTIONS)
def test_the_mouth_opens_with_openness(emotion):
    setting = avatar.Scene(identity=34, background="teal", emotion=emotion, motion=0)
    shut = still(setting, 0.0)
    changed = [np.abs(still(setting, o) - shut).sum() for o in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert np.all(np.diff(changed) > 0)
    # Only around the mouth does anything change.
    rows = np.flatnonzero(np.abs(still(setting, 1.0) - shut).sum(axis=(1, 2)))
    assert rows.min() > 32


def test_named_background_in_the_corners():
    for name, colour in people.BACKGROUNDS.items():
        face = avatar.reference(avatar.Scene(1, name, "neutral", 0)).astype(int)
        distance = {
            other: np.abs(face[1:4, 1:4].mean(axis=(0, 1)) - c).sum() for other, c in people.BACKGROUNDS.items()
        }
        assert min(distance, key=distance.get) == name, (name, colour, distance)


def test_prompt_names_what_is_drawn():
    setting = avatar.Scene(1, "orange", "angry", 0)
    assert setting.prompt == "an angry person on an orange background"
    assert people.prompt("happy", "teal") == "a happy person on a teal background"


def test_people_differ_and_held_out_ones_are_apart():
    vectors = np.stack([people.identity(seed).vector() for seed in range(50)])
    distance = np.abs(vectors[:, None] - vectors[None]).sum(axis=2) + 10 * np.eye(50)
    assert vectors.shape == (50, 24) and distance.min() > 0.2
    assert all(avatar.scene(seed).identity not in avatar.HELD_OUT for seed in range(50))
    assert all(avatar.scene(seed, held_out=True).identity in avatar.HELD_OUT for seed in range(50))


def test_blinks_and_head_motion():
    frames = np.arange(16 * 600)
    closed = people.blinks(7, frames)
    count = int((np.diff((closed > 0).astype(int)) == 1).sum())
    assert 0.7 < count / (600 * people.BLINKS_PER_SECOND) < 1.3
    pose = people.head_pose(7, frames)
    assert np.abs(np.diff(pose, axis=0)).max() < 0.03 and np.abs(pose).max() < 0.35
    # Still in motion, and as smooth, after ten years.
    late = people.head_pose(7, 16 * 86400 * 3650 + np.arange(1000))
    assert np.abs(np.diff(late, axis=0)).max() < 0.03 and late.std(axis=0).min() > 0.005


def test_any_size_is_the_same_picture():
    setting = avatar.Scene(34, "teal", "happy", 0)
    large, small = still(setting, 0.6, 256), still(setting, 0.6, 64)
    assert np.abs(large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) - small).mean() < 2.5
