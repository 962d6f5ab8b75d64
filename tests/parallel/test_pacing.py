"""Who may sample: the pipeline's room, shared by streams in turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.pacing import HOPS, Pacer, Room


def always(stream, chunk):
    return True


def pacer_of(in_flight: int, streams: int, live: bool = False) -> Pacer:
    pacer = Pacer(in_flight)
    for stream in range(streams):
        pacer.open(stream, live)
    return pacer


def leave(pacer: Pacer, stream: int, chunk: int, times: dict[int, float], now: float) -> None:
    """A chunk has left the shared stages, and its output takes no time."""
    pacer.done(stream, chunk, times, now)
    pacer.out(stream, chunk, 0.0, now)


def granted(pacer: Pacer, now: float = 0.0) -> list[tuple[int, int]]:
    """(stream, chunk) of what may be sampled, whenever."""
    return [(grant.stream, grant.chunk) for grant in pacer.grants(always, now)]


def fill(pacer: Pacer) -> list[tuple[int, int]]:
    """All that may enter, each sampled at once."""
    found = []
    while given := granted(pacer):
        found += given
        for stream, _ in given:
            pacer.entered(stream)
    return found


def test_streams_take_turns_within_one_limit():
    pacer = pacer_of(5, 2)
    assert fill(pacer) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert fill(pacer) == []
    leave(pacer, 1, 0, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, 0.0)
    assert fill(pacer) == [(1, 2)]


def test_a_stream_samples_one_chunk_at_a_time():
    pacer = pacer_of(5, 1)
    assert granted(pacer) == [(0, 0)]
    assert granted(pacer) == []
    pacer.entered(0)
    assert granted(pacer) == [(0, 1)]


def test_a_source_that_is_waited_for_takes_nobody_elses_room():
    pacer = pacer_of(2, 3, live=True)
    assert granted(pacer) == [(0, 0), (1, 0), (2, 0)]
    assert pacer.in_flight == 0
    pacer.entered(0)
    pacer.entered(1)
    # Both rooms are taken; what stream 2 was granted may still come.
    assert (pacer.in_flight, granted(pacer)) == (2, [])
    leave(pacer, 0, 0, {0: 1.0, 1: 1.0}, 0.0)
    assert granted(pacer) == [(0, 1), (1, 1)]


def test_the_slowest_worker_sets_the_limit():
    pacer = pacer_of(9, 1)
    assert len(fill(pacer)) == 9
    for chunk in range(9):
        leave(pacer, 0, chunk, {0: 1.0, 1: 1.0, 2: 4.0}, 0.0)
    assert len(fill(pacer)) == 2


def test_messages_are_a_stage_that_keeps_nobody_busy():
    """Five equal stages and messages of a fifth of one: a sixth chunk, where six are allowed."""
    for most, limit in ((5, 5), (6, 6)):
        pacer = Pacer(5, most)
        pacer.open(0)
        assert len(fill(pacer)) == 5
        for chunk in range(5):
            leave(pacer, 0, chunk, dict.fromkeys(range(5), 1.0) | {HOPS: 0.2}, 0.0)
        assert len(fill(pacer)) == limit


def test_the_last_room_stays_empty_for_the_missing_part_of_a_period():
    """Five equal stages and messages of a fifth of one: 5.2 in the mean, so the sixth waits for 0.8 of a stage."""
    pacer = Pacer(5, 6)
    pacer.open(0)
    fill(pacer)
    for chunk in range(5):
        leave(pacer, 0, chunk, dict.fromkeys(range(5), 1.0) | {HOPS: 0.2}, 10.0 + chunk)
    at = []
    while given := pacer.grants(always, 14.1):
        at += [grant.at for grant in given]
        pacer.entered(0)
    assert at[:-1] == [14.1] * 5
    assert at[-1] == pytest.approx(14.0 + 0.8)
    leave(pacer, 0, 5, dict.fromkeys(range(5), 1.0) | {HOPS: 0.2}, 15.0)
    # Asked later than that, it may be sampled at once.
    assert [grant.at for grant in pacer.grants(always, 16.0)] == [16.0]


def test_the_longest_of_the_recent_ways_counts():
    pacer = Pacer(5, 9)
    pacer.open(0)
    fill(pacer)
    for chunk, first in enumerate([1.0, 1.0, 3.0, 1.0, 1.0]):
        leave(pacer, 0, chunk, dict.fromkeys(range(1, 5), 1.0) | {0: first}, 0.0)
    assert len(fill(pacer)) == 7
    for chunk, room in zip(range(5, 11), [7] * 5 + [5], strict=True):
        leave(pacer, 0, chunk, dict.fromkeys(range(5), 1.0), 0.0)
        fill(pacer)
        assert pacer.in_flight == max(room, 6)
    leave(pacer, 0, 11, dict.fromkeys(range(5), 1.0), 0.0)
    assert (fill(pacer), pacer.in_flight) == ([], 5)


def test_whole_chunks_fill_a_ring():
    """Two workers that a chunk passes twice, and messages of a tenth of its way: two in flight, without delay."""
    pacer = Pacer(2, 3, returns=True)
    pacer.open(0)
    fill(pacer)
    for chunk in range(2):
        leave(pacer, 0, chunk, {0: 2.0, 1: 2.0, HOPS: 0.4}, 1.0)
    grant = pacer.grants(always, 1.0)[0]
    pacer.entered(0)
    assert (grant.at, len(fill(pacer))) == (1.0, 1)


def test_a_ring_takes_in_what_fills_it_and_the_next_when_one_is_past_the_head():
    """Two equal blocks and a decoder of half a period: three in flight, of which two go round."""
    pacer = Pacer(3, 4, returns=True, ring={0: 1.0, 1: 1.0})
    for stream in range(2):
        pacer.open(stream)
    assert fill(pacer) == [(0, 0), (1, 0)]
    pacer.passed()
    assert fill(pacer) == [(0, 1)]
    pacer.passed()
    assert (fill(pacer), pacer.in_flight) == ([], 3)
    leave(pacer, 0, 0, {0: 2.0, 1: 2.0, 2: 1.0}, 0.0)
    assert fill(pacer) == [(1, 1)]
    # What was asked for and does not come leaves the ring, too.
    pacer.passed()
    leave(pacer, 1, 0, {0: 2.0, 1: 2.0, 2: 1.0}, 0.0)
    assert granted(pacer) == [(0, 2)]
    assert pacer.in_ring == 2
    pacer.end(0)
    assert pacer.in_ring == 1


def test_a_first_chunk_measures_nothing():
    """Workers are cold: its slow decoder says nothing of the ones to come."""
    pacer = pacer_of(4, 1)
    fill(pacer)
    leave(pacer, 0, 0, {0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0}, 0.0)
    assert len(fill(pacer)) == 1
    leave(pacer, 0, 1, {0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0}, 0.0)
    assert (fill(pacer), pacer.in_flight) == ([], 3)


def test_a_cancelled_chunk_measures_nothing():
    pacer = pacer_of(3, 1)
    fill(pacer)
    leave(pacer, 0, 0, {}, 0.0)
    assert len(fill(pacer)) == 1


def test_a_stream_is_forgotten_when_all_of_it_has_left():
    pacer = pacer_of(3, 1)
    granted(pacer)
    pacer.entered(0)
    pacer.end(0)
    assert not pacer.over(0)
    leave(pacer, 0, 0, {0: 1.0}, 0.0)
    assert pacer.over(0)
    assert pacer.lanes == {}


@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(0, 4), max_size=60))
def test_never_more_in_flight_than_there_is_room_for(room, streams, finished):
    pacer, under_way = pacer_of(room, streams), {s: [] for s in range(streams)}
    for stream in [0, *finished]:
        for entered, chunk in fill(pacer):
            under_way[entered].append(chunk)
        assert sum(map(len, under_way.values())) == pacer.in_flight == room
        stream %= streams
        if under_way[stream]:
            leave(pacer, stream, under_way[stream].pop(0), dict.fromkeys(range(room), 1.0), 0.0)


def test_a_slow_output_leaves_its_stream_as_many_chunks_as_keep_it_busy():
    """Three stages of 1 and an output of 4: a way of 7, so two of its chunks are under way, whoever else is there."""
    pacer = Pacer(3)
    for stream in range(2):
        pacer.open(stream)
    for chunk in range(4):
        fill(pacer)
        for stream, output in ((0, 4.0), (1, 0.0)):
            pacer.done(stream, chunk, {0: 1.0, 1: 1.0, 2: 1.0}, 10.0 * chunk)
            pacer.out(stream, chunk, output, 10.0 * chunk)
    assert (pacer.lanes[0].room.size, pacer.lanes[1].room.size) == (2, 5)
    # A quarter of an output's time after the last was out: 7 / 4 in the mean.
    assert pacer.lanes[0].room.delay == pytest.approx(1.0)
    fill(pacer)
    for stream, lane in pacer.lanes.items():
        for chunk in range(lane.left, lane.entered):
            pacer.done(stream, chunk, {0: 1.0, 1: 1.0, 2: 1.0}, 50.0)
    # Nothing is out yet: the first stream gets no more than two, the other one the rest.
    found = [stream for stream, _ in fill(pacer)]
    assert pacer.lanes[0].room.taken == 2
    assert found.count(1) == 3 - found.count(0)


def test_what_output_does_not_hold_back_only_the_shared_room_does():
    pacer = pacer_of(3, 1)
    for chunk in range(4):
        fill(pacer)
        pacer.done(0, chunk, {0: 1.0, 1: 1.0, 2: 1.0}, 0.0)
        pacer.out(0, chunk, 0.5, 0.0)
    own = pacer.lanes[0].room
    assert (own.size, own.delay) == (own.most, 0.0)


def test_a_lane_may_be_opened_ended():
    """Of a stream that was refused nothing is ever granted, and it is over at once."""
    pacer = pacer_of(3, 0)
    pacer.open(0, ended=True)
    assert granted(pacer) == []
    assert pacer.over(0) and not pacer.over(0)


events = st.lists(st.tuples(st.sampled_from(["fill", "left", "out", "end", "cancel"]), st.integers(0, 3)), max_size=80)
times = st.dictionaries(st.integers(0, 3), st.floats(0.1, 5), min_size=1)


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), events, times, st.floats(0, 9))
def test_no_room_is_exceeded_and_all_that_was_taken_is_given_back(room, streams, live, events, times, output):
    pacer = pacer_of(room, streams, live)
    lanes = dict(pacer.lanes)
    waiting: dict[int, int] = {}
    hollow: set[int] = set()
    now = 0.0

    def left(stream: int) -> None:
        lane = lanes[stream]
        if stream in pacer.lanes and lane.left < lane.entered:
            pacer.done(stream, lane.left, {} if stream in hollow else times, now)

    def out(stream: int) -> None:
        lane = lanes[stream]
        if stream in pacer.lanes and lane.out < lane.left:
            pacer.out(stream, lane.out, 0.0 if stream in hollow else output, now)
            pacer.over(stream)

    for what, stream in events:
        now += 1
        stream %= streams
        lane = lanes[stream]
        if what == "fill":
            before = pacer.in_flight, {s: held.room.taken for s, held in pacer.lanes.items()}
            for grant in pacer.grants(always, now):
                waiting[grant.stream] = grant.chunk
                assert grant.at >= now
            # Beyond what was there before (rooms may have become smaller) no room is exceeded.
            assert pacer.in_flight <= max(pacer.room.size, before[0])
            assert all(h.room.taken <= max(h.room.size, before[1][s]) for s, h in pacer.lanes.items())
            if stream in waiting:
                del waiting[stream]
                pacer.entered(stream)
        elif what == "left":
            left(stream)
        elif what == "out":
            out(stream)
        elif not lane.ended:
            hollow |= {stream} if what == "cancel" else set()
            waiting.pop(stream, None)
            pacer.end(stream)
            pacer.over(stream)
        assert 0 <= pacer.in_flight <= pacer.room.most + live * streams
    for stream, lane in lanes.items():
        if not lane.ended:
            waiting.pop(stream, None)
            pacer.end(stream)
        while lane.out < lane.entered:
            left(stream)
            out(stream)
        pacer.over(stream)
    assert (pacer.lanes, pacer.in_flight, pacer.in_ring) == ({}, 0, sum(lane.entered for lane in lanes.values()))
    assert all(lane.room.taken == 0 and not lane.times for lane in lanes.values())


def test_a_room_is_a_way_over_its_slowest_stage():
    room = Room(5, most=9)
    assert room.measure({0: 1.0, 1: 2.0, HOPS: 0.5}) == {0: 1.0, 1: 2.0}
    assert (room.size, room.delay) == (2, pytest.approx(0.5))
