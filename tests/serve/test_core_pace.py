"""What chunks had to spare is waited out before the next is sampled, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.pace import DRIFT, LATELY, LEAST, Pace
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
        self.pace.slack(slack - self.margin_s)
        self.clock.now = max(self.clock.now, there - CHUNK_S)  # the next is sampled while this one is made


def test_a_slow_start_is_not_paid_for_ever():
    """The first chunk finds everything cold; what the later ones wait before they are shown is taken back."""
    one = Stream()
    one.chunk(0.6)
    for _ in range(4 * LATELY):
        one.chunk(0.1)
    assert one.slacks[1] == pytest.approx(0.58, abs=0.01)
    assert one.slacks[-1] == pytest.approx(one.margin_s, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.05, 0.3), min_size=6 * LATELY, max_size=6 * LATELY))
def test_what_was_never_longer_is_never_made_late_by_it(ways):
    """Once the longest way is known chunks are no later than they have varied since; nor much earlier."""
    one = Stream()
    one.chunk(0.3)  # the longest there is comes first
    for made_s in ways:
        one.chunk(made_s)
    late = [slack for slack in one.slacks if slack < 0]
    assert all(-slack <= 0.25 for slack in late)
    spare = min(one.slacks[-LATELY:])
    assert spare <= 0.25 + one.margin_s + LEAST


def test_only_what_every_chunk_lately_had_to_spare_is_waited_out():
    clock, waits = Clock(), []
    pace = Pace(waits.append, clock)
    pace.sampled(1.0)
    for seconds in (0.5,) * (LATELY - 1):
        pace.slack(seconds)
    assert pace.hold() and waits == pytest.approx([1.0 - DRIFT])
    pace.slack(0.2)
    assert pace.hold() and waits[-1] == pytest.approx(1.0 - DRIFT + 0.2)
    for seconds in (0.5,) * (LATELY - 1):
        pace.slack(seconds)
    pace.hold()
    assert waits[-1] == pytest.approx(1.0 - DRIFT + 0.2)  # taken once, and eight more are asked for


@pytest.mark.parametrize("slack", [LEAST / 2, 0.0, -0.3])
def test_little_or_nothing_to_spare_changes_nothing(slack):
    clock, waits = Clock(), []
    pace = Pace(waits.append, clock)
    pace.sampled(1.0)
    for _ in range(3 * LATELY):
        pace.slack(slack)
    assert pace.hold() and waits == pytest.approx([1.0 - DRIFT])


def test_before_the_first_chunk_nothing_is_put_off():
    pace = Pace(lambda seconds: pytest.fail("it waited"), Clock())
    for _ in range(LATELY):
        pace.slack(1.0)
    assert not pace.hold()
