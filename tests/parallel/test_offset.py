"""The offset of two clocks is right within its bound, whatever the ways take, and exactly 0 between equal clocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallel.message import Message
from parallel.offset import DRIFT, Offset

HOURS = 3600.0
ways = st.floats(0.0, 0.5)
"""Seconds that a stamp is on its way, or waits for its turn."""
trips = st.lists(st.tuples(ways, ways, ways), min_size=1, max_size=30)


class Clock:
    """Seconds of one host, by the true time of the test.

    Args:
        true: [seconds]; the one time of all clocks.
        ahead, rate: of this clock: `ahead + rate * true`.
    """

    def __init__(self, true: list[float], ahead: float = 0.0, rate: float = 1.0):
        self.true, self.ahead, self.rate = true, ahead, rate

    def __call__(self) -> float:
        return self.ahead + self.rate * self.true[0]


def hear(hears: Offset, says: Offset, true: list[float], way: float) -> None:
    """A stamp takes its way, and the error is within the bound."""
    stamp = says.stamp()
    true[0] += way
    now, there = hears._clock(), says._clock()
    hears.hear(stamp, now)
    assert abs(there + hears.seconds - now) <= hears.bound + 1e-9


def meet(mine: Offset, theirs: Offset, true: list[float], trips: list[tuple[float, float, float]]) -> None:
    """Stamps go there and back, each trip with a way, a wait, and a way."""
    for there, wait, back in trips:
        hear(theirs, mine, true, there)
        true[0] += wait
        hear(mine, theirs, true, back)


@given(trips, st.floats(-100 * HOURS, 100 * HOURS), st.floats(-DRIFT, DRIFT))
def test_the_error_is_within_the_bound(trips, ahead, drift):
    true = [0.0]
    meet(Offset(Clock(true)), Offset(Clock(true, ahead, 1 + drift)), true, trips)


@given(trips, st.floats(0, 100 * HOURS))
def test_equal_clocks_are_exactly_equal(trips, ahead):
    true = [ahead]
    mine, theirs = Offset(Clock(true)), Offset(Clock(true))
    meet(mine, theirs, true, trips)
    assert (mine.seconds, theirs.seconds) == (0.0, 0.0)


def test_the_shortest_trip_wins():
    true = [0.0]
    mine, theirs = Offset(Clock(true)), Offset(Clock(true, 5 * HOURS))
    meet(mine, theirs, true, [(0.3, 0.0, 0.0), (0.0005, 2.0, 0.0005), (0.0, 0.0, 0.4)])
    assert abs(mine.seconds + 5 * HOURS) < 1e-6
    assert mine.bound < 1e-3


def test_an_old_measurement_gives_way_to_a_fresh_one():
    true = [0.0]
    slow, fast = Clock(true), Clock(true, HOURS, 1 + DRIFT)
    mine, theirs = Offset(slow), Offset(fast)
    meet(mine, theirs, true, [(0.0001, 0.0, 0.0001), (3600.0, 0.0, 0.001), (0.001, 0.0, 0.001)])
    assert mine.bound < 0.0011, "by the first measurement it would be off by 54 ms"
    assert abs(fast() + mine.seconds - slow()) <= mine.bound


def test_nothing_is_known_before_the_first_answer():
    offset = Offset(lambda: 7.0)
    assert (offset.seconds, offset.bound) == (0.0, float("inf"))
    offset.hear(Offset(lambda: 3.0).stamp(), 7.0)
    assert (offset.seconds, offset.bound) == (0.0, float("inf"))
    assert offset.stamp() == (3.0, 7.0, 7.0)


def test_moments_are_corrected_and_nothing_was_sent_after_it_came():
    true = [100.0]
    mine, theirs = Offset(Clock(true)), Offset(Clock(true, HOURS))
    meet(mine, theirs, true, [(0.0, 0.0, 0.0)])
    message = Message("step", sent=HOURS + 90.0, moments={"a": HOURS, "b": HOURS + 200.0})
    mine.correct(message, 100.0)
    assert (message.sent, message.moments) == (90.0, {"a": 0.0, "b": 200.0})
    late = Message("step", sent=HOURS + 101.0)
    mine.correct(late, 100.0)
    assert late.sent == 100.0
    unsent = Message("step")
    mine.correct(unsent, 100.0)
    assert (unsent.sent, unsent.moments) == (0.0, {})
