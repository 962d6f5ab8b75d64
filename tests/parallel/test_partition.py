"""Contiguous partitions: as good as trying them all."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parallel.partition import least_bottleneck, least_sum, prefix_ranges
from parallel.shapes import compositions

times = st.floats(0.0, 10.0)


@st.composite
def problems(draw):
    """Uneven layers, unequal devices, something else on each, and ranges that are not allowed."""
    blocks = draw(st.integers(1, 4))
    layers = draw(st.lists(times, min_size=blocks, max_size=7))
    ranges = prefix_ranges(layers)
    cost = []
    for _ in range(blocks):
        own = ranges * draw(st.floats(0.2, 5.0)) + draw(times)
        limit = draw(st.one_of(st.just(np.inf), st.floats(1.0, 40.0)))
        cost.append(np.where(ranges <= limit, own, np.inf))
    return cost


def parts(sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [(a, a + n) for a, n in zip(starts, sizes, strict=True)]


def every(cost):
    """(bottleneck, sum, sizes) of every contiguous partition that is allowed."""
    layers = len(cost[0]) - 1
    for sizes in compositions(layers, len(cost)):
        own = [matrix[part] for matrix, part in zip(cost, parts(sizes), strict=True)]
        if np.isfinite(own).all():
            yield max(own), sum(own), list(sizes)


@given(problems())
def test_bottleneck_equals_brute_force(cost):
    found = list(every(cost))
    bottleneck, sizes = least_bottleneck(cost)
    if not found:
        assert (bottleneck, sizes) == (np.inf, [])
        return
    assert bottleneck == min(found)[0]
    assert max(m[p] for m, p in zip(cost, parts(sizes), strict=True)) == bottleneck


@given(problems(), st.floats(1.0, 2.0))
def test_sum_under_a_cap_equals_brute_force(cost, slack):
    found = list(every(cost))
    cap = least_bottleneck(cost)[0] * slack
    total, sizes = least_sum(cost, cost, cap)
    if not found:
        assert sizes == []
        return
    allowed = [s for most, s, _ in found if most <= cap * (1 + 1e-9)]
    assert np.isclose(total, min(allowed))
    assert max(m[p] for m, p in zip(cost, parts(sizes), strict=True)) <= cap * (1 + 1e-9)


def test_sums_over_ranges():
    ranges = prefix_ranges([1, 2, 4])
    assert ranges[0, 3] == 7 and ranges[1, 2] == 2
    assert np.isinf(ranges[1, 1]) and np.isinf(ranges[2, 1])
