"""Streams are cut so often that a loss costs no more than it may, and never a third time while two cuts are made."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from parallel.pacing import OUTPUT, Pacer
from runtime.cadence import UNDER_WAY, Cadence


def of(recover_s: float, period: float | None, under_way: int = 0, first: int = 0) -> Cadence:
    return Cadence(recover_s, lambda: period, lambda: under_way, first)


def cuts(cadence: Cadence, chunks: range) -> list[int]:
    found = []
    for chunk in chunks:
        if cadence.due(chunk):
            cadence.made(chunk)
            found.append(chunk)
    return found


@given(st.floats(0.01, 100), st.floats(0.001, 100), st.integers(0, 50))
def test_no_more_work_lies_between_two_cuts_than_a_loss_may_cost(recover_s, period, first):
    found = [first, *cuts(of(recover_s, period, first=first), range(first, first + 200))]
    for before, after in pairwise(found):
        assert (after - before) * period <= max(recover_s, period)
    assert len(found) == 1 + 199 // max(1, int(recover_s / period))


def test_what_was_not_measured_is_not_cut():
    assert cuts(of(1.0, None), range(9)) == []


def test_a_third_is_not_begun_while_two_are_made():
    assert cuts(of(1.0, 1.0, UNDER_WAY), range(9)) == []
    assert cuts(of(1.0, 1.0, UNDER_WAY - 1), range(4)) == [1, 2, 3]


def test_one_is_made_at_once_where_that_is_asked_for():
    cadence = of(4.0, 1.0)
    assert cuts(cadence, range(6)) == [4]
    cadence.at_once()
    assert cuts(cadence, range(6, 12)) == [6, 10]


def test_a_cut_for_another_reason_counts():
    cadence = of(4.0, 1.0)
    cadence.made(3)
    assert cuts(cadence, range(4, 9)) == [7]


def test_the_period_is_the_slowest_stages_for_all_streams():
    pacer = Pacer(5)
    pacer.open(0)
    assert pacer.period(0) is None
    for chunk in range(3):
        pacer.grants(lambda stream, chunk: True, 0.0)
        pacer.entered(0)
        pacer.done(0, chunk, {0: 1.0, 1: 2.0}, float(chunk))
        pacer.out(0, chunk, 3.0, float(chunk))
    assert pacer.period(0) == 3.0  # its output's
    pacer.open(1)
    assert (pacer.period(0), pacer.period(1)) == (4.0, 4.0)
    assert OUTPUT not in pacer.room._times[-1]
