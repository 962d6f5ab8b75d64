"""Keys move a camera as they say, and what a network is told of a camera is what its poses are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.inputs import Views
from stages.models.lingbot.moves import CONTROLS, moved
from stages.models.lingbot.rays import numbers, rays

STILL = dict.fromkeys(CONTROLS.keys, 0.0)
OPPOSITE = [("forward", "back"), ("left", "right"), ("look_up", "look_down"), ("look_left", "look_right")]
FULL = 0.05 / (1 + 1e-6)
"""A step of one video frame, as long as a length and a millionth leave it."""
LENS = (0.6, 1.1, 0.5, 0.5)


def row(*pressed: str) -> tuple[float, ...]:
    return tuple((STILL | dict.fromkeys(pressed, 1.0)).values())


def walk(*rows, start=None) -> np.ndarray:
    """Poses of all video frames: one more than rows."""
    poses = [np.eye(4) if start is None else start]
    for one in rows:
        poses.append(moved(poses[-1], one))
    return np.stack(poses)


def looked(*rows) -> np.ndarray:
    """Where a camera looks in the end."""
    return walk(*rows)[-1][:3, 2]


some_keys = st.lists(st.lists(st.sampled_from(CONTROLS.keys), max_size=4, unique=True), max_size=30)


@given(some_keys)
@settings(max_examples=60)
def test_a_camera_stays_rigid_and_upright_and_on_the_ground(keys):
    """It never rolls, never looks further up or down than it may, and no key lifts it."""
    for pose in walk(*(row(*pressed) for pressed in keys)):
        turn = pose[:3, :3]
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-12) and np.linalg.det(turn) == pytest.approx(1)
        assert turn[1, 0] == pytest.approx(0, abs=1e-12), "its own x is level"
        assert abs(turn[1, 2]) <= math.sin(math.radians(85)) + 1e-12
        assert pose[1, 3] == 0.0 and pose.dtype == np.float64


@given(some_keys, st.sampled_from(OPPOSITE))
@settings(max_examples=60)
def test_opposite_keys_cancel(keys, pair):
    start = walk(*(row(*pressed) for pressed in keys))[-1]
    assert np.array_equal(moved(start, row(*pair)), moved(start, row()))
    assert np.allclose(moved(start, row()), start, atol=1e-15), "and no key is none"
    if "look_up" not in pair:  # which may do nothing one way, and something the other
        back = walk(row(pair[0]), row(pair[1]), start=start)[-1]
        assert np.allclose(back, start, atol=1e-5)


def test_four_turns_of_ninety_degrees_close():
    quarter = [row("look_right")] * 45
    side = [row("forward")] * 20
    corners = walk(*[one for _ in range(4) for one in (*side, *quarter)])[:: len(side) + len(quarter)]
    assert np.allclose(corners[-1], np.eye(4), atol=1e-12)
    # OpenCV's axes: from z ahead it turns to x at its right.
    assert np.allclose(corners[:, :3, 3], FULL * 20 * np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]]))


def test_keys_say_where_to():
    assert looked(row("look_up"))[1] == pytest.approx(-math.sin(math.radians(2))), "y points down"
    assert looked(row("look_left"))[0] == pytest.approx(-math.sin(math.radians(2)))
    assert np.allclose(walk(row("right"))[-1][:3, 3], (FULL, 0, 0)) and np.allclose(
        walk(row("left"))[-1][:3, 3], (-FULL, 0, 0)
    )
    # A frame turns first, and then steps along what it has turned to; looking up makes it no slower.
    step = walk(row("look_right", "look_up", "forward"))[-1][:3, 3]
    assert np.allclose(step, np.array([math.sin(math.radians(2)), 0, math.cos(math.radians(2))]) * 0.05, atol=1e-6)
    assert np.linalg.norm(step) == pytest.approx(0.05, rel=2e-6)


def test_a_key_that_would_look_too_far_does_nothing():
    up = walk(*[row("look_up")] * 60)
    highest = [math.degrees(math.asin(-pose[1, 2])) for pose in up]
    assert highest[:43] == pytest.approx([2 * n for n in range(43)]) and highest[-1] == pytest.approx(84)
    assert math.degrees(math.asin(-moved(up[-1], row("look_down"))[1, 2])) == pytest.approx(82)
    # Other keys of the same frame do what they do.
    assert np.linalg.norm(moved(up[-1], row("look_up", "forward"))[:3, 3]) == pytest.approx(0.05, rel=1e-4)


# -- what is told ------------------------------------------------------------------------------------------------------


def views(poses: np.ndarray, first: int, latents: int, rows=None) -> Views:
    """Of a chunk: what was before the stream is as its first frame."""
    at = [max(0, frame) for frame in range(4 * first - 4, 4 * (first + latents) - 3)]
    pressed = [row()] * len(poses) if rows is None else rows
    return Views(poses[at], np.tile(LENS, (len(at), 1)), [pressed[frame] for frame in at[1:]])


def turned_world() -> np.ndarray:
    frame = walk(*[row("look_left", "look_up", "right")] * 11)[-1]
    frame[:3, 3] += (3.0, -70.0, 12.5)
    return frame


@pytest.mark.parametrize("control", ["cam", "act"])
def test_where_the_world_has_its_origin_makes_no_difference(control):
    rows = [row("forward", "look_right"), row("left", "look_up"), row("look_down")] * 8
    act, plain = control == "act", walk(*rows)
    rows = [*rows, row()]
    for first in (0, 3):
        told = numbers(views(plain, first, 3, rows), 0.2, act)
        other = numbers(views(turned_world() @ plain, first, 3, rows), 0.2, act)
        assert told.shape == (1, 3, 20 if act else 16) and torch.allclose(told, other, atol=1e-6)
    # But it does where it is inside the steps.
    inside = numbers(views(plain @ turned_world(), 3, 3, rows), 0.2, act)
    assert not torch.allclose(told, inside, atol=1e-2)


@pytest.mark.parametrize("latents", [1, 3, 4])
def test_how_a_stream_is_cut_into_chunks_makes_no_difference(latents):
    """Latent frame L is told the step from video frame 4 L - 4 to 4 L, and the first that nothing moved."""
    rows = [row("forward", "look_right"), row("left", "look_up"), row("back"), row("look_down", "right")] * 12
    poses, rows = walk(*rows), [*rows, row()]
    told = torch.cat([numbers(views(poses, i, latents, rows), 0.2, True) for i in range(0, 12, latents)], 1)[0]
    assert torch.equal(told[0, :12], torch.eye(4)[:3].flatten())
    for latent in range(1, 12):
        step = np.linalg.solve(poses[4 * latent - 4], poses[4 * latent])
        step[:3, 3] /= 0.2
        assert np.allclose(told[latent, :12].numpy(), step[:3].ravel(), atol=1e-6)
        assert told[latent, 12:16].numpy() == pytest.approx(LENS)
        assert tuple(told[latent, 16:].tolist()) == rows[4 * latent][:4]


def test_a_clip_that_moves_straight_at_full_speed_is_what_the_whole_clip_rule_makes_of_it():
    """That rule divides by the longest of all steps, which no stream knows."""
    for rows, scale, near in (([row("forward")] * 32, 0.2, 2e-6), ([row("right")] * 32, 4 * FULL, 0)):
        poses = walk(*rows)
        at = poses[::4]
        steps = np.linalg.inv(at[:-1]) @ at[1:]
        steps[:, :3, 3] /= np.linalg.norm(steps[:, :3, 3], axis=1).max()
        told = torch.cat([numbers(views(poses, i, 3), scale, False) for i in (0, 3, 6)], 1)
        expected = torch.from_numpy(np.concatenate([np.eye(4)[None], steps])[:, :3].reshape(-1, 12)).float()
        assert (told[0, :, :12] - expected).abs().max() <= (near or 1e-7)
    # Diagonally it is faster, and other steps of such a clip would be told as slower than they are.
    diagonal = numbers(views(walk(*[row("forward", "left")] * 16), 3, 1), 0.2, False)[0, 0]
    assert diagonal[[3, 7, 11]].norm() == pytest.approx(math.sqrt(2), rel=1e-5)


def test_rays_lie_as_they_are_trained():
    """Channel by channel of origin and direction the 8x8 pixels of a place, row by row; pixels count in the middle."""
    pose = turned_world()
    pose[:3, 3] /= 100
    lens = np.array([0.61, 1.13, 0.52, 0.47])
    camera = torch.from_numpy(np.concatenate([pose[:3].ravel(), lens, (1, 0, 0, 1)])).float().view(1, 1, 20)
    rows, columns = 3, 5
    told, pressed = rays(camera[..., :16], rows, columns, False), rays(camera, rows, columns, True)
    assert told.shape == (1, 384, 1, rows, columns) and pressed.shape == (1, 448, 1, rows, columns)
    for r, c, i, j in ((0, 0, 0, 0), (2, 4, 7, 7), (1, 3, 2, 5), (2, 0, 6, 1)):
        u, v = (8 * c + j + 0.5) / (8 * columns), (8 * r + i + 0.5) / (8 * rows)
        direction = pose[:3, :3] @ ((u - lens[2]) / lens[0], (v - lens[3]) / lens[1], 1.0)
        direction /= np.linalg.norm(direction)
        pixel = 8 * i + j
        assert told[0, pixel::64, 0, r, c].numpy() == pytest.approx([*pose[:3, 3], *direction], abs=1e-6)
        assert pressed[0, pixel::64, 0, r, c].numpy() == pytest.approx([*direction, 1, 0, 0, 1], abs=1e-6)
