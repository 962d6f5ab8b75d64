"""What chunks had to spare is waited out before the next is sampled, in virtual time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.pace import BEGIN, DRIFT, LATELY, LEAST, MOST, Pace
from tests.serve.core_ends import Clock

CHUNK_S = 0.75


class Stream:
    """A stream that is sampled, made and played: the player's clock is the one of its first chunk and a margin."""

    def __init__(self, margin_s: float = 0.08):
        self.clock, self.margin_s, self.zero, self.count = Clock(), margin_s, None, 0
        self.pace = Pace(self._wait, self.clock)
        self.sampled: list[float] = []
        self.slacks: list[float] = []

    def _wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def chunk(self, made_s: float) -> None:
        """One chunk that takes so long from being sampled until it is there."""
        self.pace.hold()
        self.sampled.append(self.clock.now)
        self.pace.sampled(CHUNK_S)
        there = self.clock.now + made_s
        self.zero = there + self.margin_s if self.zero is None else self.zero
        slack = self.zero + self.count * CHUNK_S - there
        self.zero -= min(0.0, slack)
        self.count += 1
        self.slacks.append(slack)
        self.pace.slack(slack - self.margin_s, max(0.0, -slack))
        self.clock.now = max(self.clock.now, there - CHUNK_S)  # the next is sampled while this one is made


def test_a_slow_start_is_not_paid_for_ever():
    """The first chunk finds everything cold; what the later ones wait before they are shown is taken back."""
    one = Stream()
    one.chunk(0.6)
    for _ in range(4 * BEGIN):
        one.chunk(0.1)
    assert one.slacks[1] == pytest.approx(0.58, abs=0.01)
    assert one.slacks[-1] == pytest.approx(one.margin_s, abs=0.02)


@settings(max_examples=60)
@given(st.lists(st.floats(0.05, 0.3), min_size=60, max_size=60))
def test_what_was_never_longer_is_never_made_late_by_it(ways):
    """Once the longest way is known chunks are no later than they have varied since; nor much earlier."""
    one = Stream()
    one.chunk(0.3)  # the longest there is comes first
    for made_s in ways:
        one.chunk(made_s)
    late = [slack for slack in one.slacks if slack < 0]
    assert all(-slack <= 0.25 for slack in late)
    assert min(one.slacks[-BEGIN:]) <= 0.25 + one.margin_s + LEAST


def test_without_rare_long_ways_chunks_soon_enter_as_late_as_they_may():
    one = Stream()
    rng = random.Random(1)
    one.chunk(0.9)
    for _ in range(400):
        one.chunk(0.2 + 0.02 * rng.random())
    settled = one.slacks[20:]
    assert all(0 <= slack <= one.margin_s + 0.02 + LEAST + 1e-6 for slack in settled)


@pytest.mark.parametrize("every", [20, 33, 100])
def test_rare_long_ways_are_not_forgotten_after_a_few_chunks(every):
    """One in so many is late by 0.3 s: after the first few of them the picture does not stand any more."""
    one = Stream()
    one.chunk(0.5)
    for number in range(1, 2000):
        one.chunk(0.5 if number % every == every - 1 else 0.2)
    late = sum(slack < -1e-6 for slack in one.slacks)
    assert late < 0.01 * len(one.slacks)


@pytest.mark.parametrize("seed", range(4))
def test_one_in_a_hundred_at_random_makes_less_than_that_late(seed):
    one, rng = Stream(), random.Random(seed)
    one.chunk(0.3)
    for _ in range(4000):
        one.chunk(0.5 if rng.random() < 0.01 else 0.2 + 0.02 * rng.random())
    assert sum(slack < -1e-6 for slack in one.slacks) < 0.01 * len(one.slacks)


def test_a_long_way_that_never_comes_again_is_given_away_slowly_and_in_the_end():
    one = Stream()
    one.chunk(0.3)
    for number in range(1, LATELY + 200):
        one.chunk(1.0 if number == 300 else 0.2)
    after = one.slacks[302:]
    assert all(a - b <= MOST + 0.002 for a, b in pairwise(after))
    assert after[-1] <= one.margin_s + LEAST + 1e-6
    assert min(one.slacks[301:]) >= 0


def test_chunks_under_way_are_known_by_what_they_were_put_off_and_not_by_what_others_are():
    clock = Clock()
    pace = Pace(lambda seconds: setattr(clock, "now", clock.now + seconds), clock)
    for _ in range(BEGIN + 3):
        pace.hold()
        pace.sampled(1.0)
    for _ in range(BEGIN + 1):
        pace.slack(0.5)
    before = pace._due
    pace.hold()
    assert pace._due == pytest.approx(before + 0.5, abs=0.02)
    pace.sampled(1.0)
    for _ in range(2):  # they were sampled before that
        pace.slack(0.5)
    for _ in range(2 * BEGIN):
        pace.hold()
        pace.sampled(1.0)
        pace.slack(0.0)
    assert pace._put_off == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("slack", [LEAST / 2, 0.0, -0.3])
def test_little_or_nothing_to_spare_changes_nothing(slack):
    clock, waits = Clock(), []
    pace = Pace(waits.append, clock)
    pace.sampled(1.0)
    for _ in range(3 * BEGIN):
        pace.slack(slack)
    assert pace.hold() and waits == pytest.approx([1.0 - DRIFT])


def test_before_the_first_chunk_nothing_is_put_off():
    pace = Pace(lambda seconds: pytest.fail("it waited"), Clock())
    for _ in range(2 * BEGIN):
        pace.slack(1.0)
    assert not pace.hold()


def test_a_chunk_is_due_when_all_before_it_have_been_watched():
    """Counted from when the last one was shown, so a clock that a late chunk has moved is followed."""
    clock = Clock(0.0)
    pace = Pace(lambda seconds: None, clock)
    pace.sampled(0.5)
    clock.now = 2.0
    pace.slack(0.1)
    pace.sampled(0.75)
    assert pace.shown == 2.5
    pace.sampled(0.75)
    assert pace.shown == 3.25
    clock.now = 2.75  # a quarter of a second late
    pace.slack(-0.1, 0.25)
    assert pace.shown == 3.5


def test_before_anything_is_shown_a_chunk_may_take_as_long_as_it_is_watched():
    clock = Clock(0.0)
    pace = Pace(lambda seconds: None, clock)
    assert pace.shown is None
    for clock.now in (0.0, 1.0, 5.0):
        pace.sampled(0.75)
        assert pace.shown == clock.now + 0.75
