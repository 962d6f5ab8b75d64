"""The level of noise follows motion, by the published rule and in its rounding."""

import math

import numpy as np
import pytest
import torch

from runtime.video import pixels
from stages.sources.motion import Motion, fastest


def steady(value, count=4):
    return torch.full((3, count, 8, 8), value)


def flickering(size, count=4):
    """Pictures that differ by `size` from each to the next, in RMS."""
    return torch.cat([steady(size / 2 * (-1) ** k, 1) for k in range(count)], 1)


def test_the_first_chunk_has_what_is_configured():
    motion = Motion(0.8)
    assert motion.next(flickering(2.0, 5)) == (0.8, None)
    assert motion.before == 0.8


def test_nothing_moves():
    """Exactly the configured level for ever: in float32 the timestep would fall to 699."""
    motion = Motion(0.8)
    motion.next(steady(0.3, 5))
    for _ in range(100):
        level, timestep = motion.next(steady(0.3))
        assert level == pytest.approx(0.8, abs=1e-12) and timestep == 700.0


def test_everything_moves():
    motion = Motion(0.8)
    motion.next(steady(-0.5, 1))
    found = [motion.next(flickering(1.0)) for _ in range(60)]
    assert [timestep for _, timestep in found[:4]] == [610.0, 601.0, 600.0, 600.0]
    assert [level for level, _ in found[:3]] == pytest.approx([0.71, 0.701, 0.7001])
    assert min(level for level, _ in found) >= 0.7 - 1e-12


def test_levels_are_those_of_the_rule():
    """s = 0.9 (s0 - 0.1 clip(d / 0.2)) + 0.1 s_before, computed here from the pictures in another way."""
    rng = np.random.default_rng(3)
    steps = rng.integers(-2, 3, (33, 8, 8, 3)) * rng.integers(0, 9, (33, 1, 1, 1))
    frames = np.clip(128 + np.cumsum(steps, 0), 0, 255).astype(np.uint8)
    motion, s, seen, moved = Motion(0.75), 0.75, 1, []
    motion.next(pixels(frames[:1]))
    while seen < len(frames):
        level, timestep = motion.next(pixels(frames[seen : seen + 4]))
        x = pixels(frames[seen - 1 : seen + 4]).double()
        d = max(math.sqrt(((x[:, k + 1] - x[:, k]) ** 2).mean()) for k in range(4))
        s = 0.9 * (0.75 - 0.1 * min(max(d / 0.2, 0), 1)) + 0.1 * s
        assert level == pytest.approx(s, abs=1e-12) and timestep == math.floor(1000 * level) - 100
        seen += 4
        moved.append(d)
    assert 0 < min(moved) < max(moved) < 0.2 and len(set(moved)) > 5


def test_the_frame_before_counts_and_the_largest_step_does():
    before = steady(0.0, 1)[:, 0]
    assert fastest(steady(0.5), before) == pytest.approx(0.5)
    assert fastest(torch.cat([steady(0.1, 2), steady(-0.15, 1), steady(-0.1, 1)], 1), before) == pytest.approx(0.25)
    one = steady(0.0, 1)
    one[0, 0, 0, 0] = 1.0
    assert fastest(one, before) == pytest.approx(math.sqrt(1 / (3 * 8 * 8)))


def test_it_goes_on_from_its_level_and_its_last_picture():
    whole, chunks = Motion(0.8), [flickering(0.1 * k) for k in range(1, 6)]
    expected = [whole.next(chunk) for chunk in chunks]
    first = Motion(0.8)
    assert [first.next(chunk) for chunk in chunks[:3]] == expected[:3]
    later = Motion(0.8)
    later.before, later.last = first.before, first.last
    assert [later.next(chunk) for chunk in chunks[3:]] == expected[3:]
