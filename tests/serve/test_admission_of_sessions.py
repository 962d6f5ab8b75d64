"""Who is let in: capacity, the queue, callers' limits, by a clock that the tests turn."""

from __future__ import annotations

import random

import pytest

from conf.schema.serve import ServeConfig
from serve.admission import Admission
from serve.problems import Problem
from serve.resources import Memory


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def admission(clock, cores=100.0, rejected=lambda model, reason: None, **serve) -> Admission:
    settings = {"headroom": 0.0, "sessions_per_caller": 1000}
    return Admission(ServeConfig(**settings | serve), clock, cores, rejected)


def refused(call, *arguments, **named) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*arguments, **named)
    return caught.value


@pytest.mark.parametrize(
    ("rate", "headroom", "room", "most", "cores", "limit"),
    [
        (4.9, 0.0, None, "auto", 0.0, (4, "rate")),
        (4.0, 0.25, None, "auto", 0.0, (3, "rate")),
        (5.0, 0.8, None, "auto", 0.0, (1, "rate")),  # 5 * (1 - 0.8) is a little less than 1
        (40.0, 0.0, 7, "auto", 0.0, (7, "memory")),
        (40.0, 0.0, 7, "2", 0.0, (2, "max_sessions")),
        (40.0, 0.0, None, "auto", 0.5, (16, "cores")),
        (0.9, 0.0, None, "5", 0.0, (0, "rate")),
    ],
)
def test_capacity_is_the_least_of_rate_memory_cores_and_what_was_asked_for(
    clock, rate, headroom, room, most, cores, limit
):
    gate = admission(clock, cores=8.0, headroom=headroom, max_sessions=most)
    memory = [] if room is None else [Memory("m", 10, 1, 10 * room - 10), Memory("m", 0, 0, 10**9)]
    gate.model("a", rate, {"cores": cores}, memory)
    assert gate.limit("a") == limit
    assert gate.capacity("a") == limit[0]
    for _ in range(limit[0]):
        gate.enter("a", "x")
    assert refused(gate.enter, "a", "x").type == "full"
    assert gate.running("a") == limit[0] == gate.capacity("a")


def test_models_share_the_processors(clock):
    gate = admission(clock, cores=4.0, headroom=0.25)  # 3 for sessions
    gate.model("heavy", 10.0, {"cores": 1.0})
    gate.model("light", 10.0, {"cores": 0.5})
    gate.model("gpu", 3.0, {"host/GPU-0": 1 / 3})
    first, _ = gate.enter("heavy", "x"), gate.enter("heavy", "x")
    assert (gate.capacity("heavy"), gate.capacity("light")) == (3, 2)
    gate.enter("light", "x")
    assert (gate.capacity("heavy"), gate.capacity("light")) == (2, 2)
    gate.enter("light", "x")
    assert refused(gate.enter, "heavy", "x").type == refused(gate.enter, "light", "x").type == "full"
    assert gate.capacity("gpu") == 2, "who computes elsewhere is held up by nobody"
    first.leave()
    assert gate.capacity("heavy") == 2 and gate.capacity("light") == 4


def test_who_is_refused_hears_when_to_come_again(clock):
    gate = admission(clock, lease_s=30.0, session_s=600.0)
    gate.model("a", 2.0)
    gate.model("none", 0.5)
    gate.enter("a", "x", ends_s=100.0)
    clock.now += 10
    place = gate.enter("a", "y", ends_s=40.0)
    assert refused(gate.enter, "a", "z").retry_after_s == 40.0
    clock.now += 15
    assert refused(gate.enter, "a", "z").retry_after_s == 25.0
    place.ends = clock.now + 5  # its viewer has gone
    assert refused(gate.enter, "a", "z").retry_after_s == 5.0
    clock.now += 300
    assert refused(gate.enter, "a", "z").retry_after_s == 1.0, "it is about to go, and has not gone"
    assert refused(gate.enter, "none", "z").retry_after_s == 30.0


def test_no_session_is_given_longer_than_the_server_allows(clock):
    gate = admission(clock, session_s=60.0)
    gate.model("a", 3.0)
    assert gate.enter("a", "x", ends_s=1e9).left_s == gate.enter("a", "x").left_s == 60.0


def test_a_caller_is_an_ipv6_site(clock):
    gate = admission(clock, sessions_per_caller=2)
    gate.model("a", 2.0)
    gate.enter("a", "2001:db8::1")
    gate.enter("a", "2001:db8:0:1::1").leave()
    gate.enter("a", "::ffff:10.0.0.1")
    gate.queue("a", "2001:db8::2")
    assert refused(gate.queue, "a", "2001:db8::3").type == "too_many"
    gate.queue("a", "10.0.0.1")
    assert refused(gate.queue, "a", "10.0.0.1").type == "too_many"


def test_a_caller_has_a_limit_of_its_own_over_all_models_and_the_queue(clock):
    gate = admission(clock, sessions_per_caller=3)
    gate.model("a", 1.0)
    gate.model("b", 9.0)
    first, _, waiting = gate.enter("a", "x", ends_s=70.0), gate.enter("b", "x", ends_s=90.0), gate.queue("a", "x")
    for way in (gate.enter, gate.queue):
        problem = refused(way, "b", "x")
        assert (problem.type, problem.status, problem.retry_after_s) == ("too_many", 429, 70.0)
    gate.enter("b", "y")
    waiting.leave()
    gate.enter("b", "x")
    first.leave()
    gate.enter("b", "x")


def test_the_queue_goes_on_in_order_and_everyone_hears_of_it(clock):
    gate = admission(clock, queue=3)
    gate.model("a", 1.0)
    place, heard = gate.enter("a", "x"), []

    def join(name):
        waiting = gate.queue("a", name, changed=lambda: heard.append((name, waiting.position, bool(waiting.place))))
        return waiting

    one, two, three = map(join, ("one", "two", "three"))
    assert [w.position for w in (one, two, three)] == [1, 2, 3]
    assert refused(gate.queue, "a", "four").type == "full"
    assert refused(gate.enter, "a", "four").type == "full"
    assert not heard
    two.leave()
    assert heard == [("three", 2, False)]
    place.leave()
    assert heard[1:] == [("one", 0, True), ("three", 1, False)]
    assert (gate.running("a"), gate.waiting("a")) == (1, 1)
    place.leave()
    assert gate.running("a") == 1, "a place that was left is not left again"
    one.leave()
    assert three.place and gate.waiting("a") == 0
    three.leave()
    three.leave()
    assert gate.running("a") == 0


def test_who_comes_while_there_is_a_place_does_not_wait(clock):
    gate = admission(clock)
    gate.model("a", 1.0)
    waiting = gate.queue("a", "x")
    assert waiting.place and waiting.position == 0 and waiting.wait_s == 0.0


def test_the_time_of_a_session_begins_with_its_place(clock):
    gate = admission(clock)
    gate.model("a", 1.0)
    place, waiting = gate.enter("a", "x", ends_s=50.0), gate.queue("a", "y", ends_s=40.0)
    clock.now += 30
    place.leave()
    assert waiting.place.left_s == 40.0


def test_waits_are_what_sessions_leave(clock):
    gate = admission(clock, session_s=600.0)
    gate.model("a", 2.0)
    gate.enter("a", "x", ends_s=100.0), gate.enter("a", "x", ends_s=50.0)
    waits = [gate.queue("a", "y") for _ in range(5)]
    assert [w.wait_s for w in waits] == [50.0, 100.0, 650.0, 700.0, 1250.0]
    clock.now += 20
    assert [w.wait_s for w in waits[:3]] == [30.0, 80.0, 630.0]


def test_waits_go_by_how_long_sessions_last(clock):
    gate = admission(clock, session_s=600.0)
    gate.model("a", 1.0)
    for length in (10.0, 30.0):
        place = gate.enter("a", "x")
        clock.now += length
        place.leave()
    gate.enter("a", "x")
    one, two = gate.queue("a", "y"), gate.queue("a", "y")
    assert (one.wait_s, two.wait_s) == (20.0, 40.0)
    clock.now += 12
    assert one.wait_s == 18.0, "those of its age lasted until 30"
    clock.now += 100
    assert one.wait_s == 488.0, "none has lasted so long: its limit is all that is known"


def test_late_sessions_close_the_door_until_they_are_in_time_again(clock):
    reasons = []
    gate = admission(clock, cores=8.0, rejected=lambda model, reason: reasons.append((model, reason)))
    gate.model("a", 8.0, {"cores": 0.5})
    gate.model("b", 8.0, {"cores": 0.5})
    gate.model("gpu", 8.0)
    gate.enter("a", "x")
    for i in range(100):
        gate.late("a", 0.2 if i < 2 else 0.0)
    assert gate.capacity("a") == 8, "2 of 100"
    gate.late("a", 0.2)
    assert (gate.capacity("a"), gate.capacity("b"), gate.capacity("gpu")) == (1, 0, 8)
    assert refused(gate.enter, "a", "x").type == refused(gate.enter, "b", "x").type == "full"
    assert reasons == [("a", "late"), ("b", "late")]
    gate.enter("gpu", "x")
    waiting = gate.queue("a", "x")
    clock.now += 4.9
    gate.refresh()
    assert waiting.position == 1
    clock.now += 0.2
    gate.refresh()
    assert waiting.place and gate.capacity("a") == 8


def test_models_share_a_card(clock):
    """What one of them keeps in time alone, two of them do not."""
    gate = admission(clock, headroom=0.2)
    gate.model("a", 4.0, {"host/one": 0.25})
    gate.model("b", 2.0, {"host/one": 0.5, "host/two": 0.5})
    gate.model("c", 2.0, {"host/two": 0.5})
    assert [gate.capacity(name) for name in "abc"] == [3, 1, 1] == [gate.limit(name)[0] for name in "abc"]
    first = gate.enter("a", "x")
    assert (gate.capacity("a"), gate.capacity("b"), gate.capacity("c")) == (3, 1, 1)
    second = gate.enter("a", "x")
    assert (gate.capacity("a"), gate.capacity("b"), gate.capacity("c")) == (3, 0, 1)
    assert refused(gate.enter, "b", "x").type == "full"
    second.leave()
    gate.enter("b", "x")
    assert (gate.capacity("a"), gate.capacity("b"), gate.capacity("c")) == (1, 1, 0)
    assert refused(gate.enter, "a", "x").type == refused(gate.enter, "c", "x").type == "full"
    first.leave()
    gate.enter("a", "x")


def test_models_share_a_memory(clock):
    gate = admission(clock)
    gate.model("a", 40.0, memory=[Memory("m", 30, 1, 100), Memory("n", 1, 0, 50)])
    gate.model("b", 40.0, memory=[Memory("m", 20, 0, 90)])
    assert (gate.limit("a"), gate.limit("b")) == ((4, "memory"), (4, "memory")), (
        "90 bytes are free, and a has one pooled"
    )
    gate.enter("a", "x")
    assert (gate.capacity("a"), gate.capacity("b")) == (4, 4), "its first has its bytes already"
    gate.enter("a", "x"), gate.enter("b", "x"), gate.enter("b", "x")
    assert (gate.capacity("a"), gate.capacity("b")) == (2, 3)
    waiting = gate.queue("a", "x")
    assert refused(gate.enter, "b", "x").type == "full", "who waits for those bytes came before"
    waiting.leave()
    gate.enter("b", "x")


def test_one_estimate_for_who_waits_and_who_is_refused(clock):
    """How long sessions have lasted, and not how long one may."""
    gate = admission(clock, session_s=1800.0, queue=3)
    gate.model("a", 1.0)
    for _ in range(3):
        place = gate.enter("a", "x")
        clock.now += 20.0
        place.leave()
    gate.enter("a", "x")
    clock.now += 5.0
    assert refused(gate.enter, "a", "y").retry_after_s == 15.0
    waits = [gate.queue("a", "y") for _ in range(3)]
    assert [waiting.wait_s for waiting in waits] == [15.0, 35.0, 55.0]
    assert refused(gate.enter, "a", "y").retry_after_s == 75.0 == refused(gate.queue, "a", "y").retry_after_s


def test_whose_place_is_another_models_waits_for_that(clock):
    gate = admission(clock, cores=2.0)
    gate.model("a", 9.0, {"cores": 1.0})
    gate.model("b", 9.0, {"cores": 1.0})
    gate.enter("a", "x", ends_s=100.0), gate.enter("b", "x", ends_s=20.0)
    assert refused(gate.enter, "a", "y").retry_after_s == 20.0 == gate.queue("a", "y").wait_s


def test_a_model_of_heavy_sessions_has_its_turn(clock):
    """Places that light ones leave are not taken by light ones that came later."""
    gate = admission(clock, cores=4.0)
    gate.model("heavy", 9.0, {"cores": 2.0})
    gate.model("light", 9.0, {"cores": 1.0})
    light = [gate.enter("light", "x") for _ in range(3)]
    heavy = gate.queue("heavy", "x")
    assert refused(gate.enter, "light", "x").type == "full"
    later = gate.queue("light", "x")
    light[0].leave()
    assert heavy.place and later.position == 1
    light[1].leave()
    assert later.place


def test_who_ends_lets_nobody_in(clock):
    gate = admission(clock, drain_s=12.0)
    gate.model("a", 1.0)
    place, waiting = gate.enter("a", "x"), gate.queue("a", "y")
    gate.draining = True
    for way in (gate.enter, gate.queue):
        assert (refused(way, "a", "z").type, refused(way, "a", "z").retry_after_s) == ("draining", 12.0)
    place.leave()
    assert waiting.place is None and waiting.position == 1
    waiting.leave()
    assert gate.waiting("a") == gate.running("a") == 0


def test_a_model_that_is_not_served(clock):
    problem = refused(admission(clock).enter, "x" * 500, "z")
    assert problem.type == "not_found" and len(problem.detail) < 200


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes(clock, seed):
    """Limits hold at every moment; positions are 1 to n in the order of coming; nobody waits while there is a place."""
    draw = random.Random(seed)
    gate = admission(clock, cores=6.0, headroom=0.1, queue=6, sessions_per_caller=5)
    cores, most = {"a": 0.7, "b": 1.6, "gpu": 0.0}, {"a": 4, "b": 3, "gpu": 2}
    for name in cores:
        gate.model(name, most[name] / 0.9, {"cores": cores[name]})
    places, waits = [], {name: [] for name in cores}
    for _ in range(300):
        clock.now += draw.random()
        name, act = draw.choice([*cores]), draw.random()
        if act < 0.3:
            try:
                places.append(gate.enter(name, draw.choice("xyz"), draw.uniform(5, 50)))
            except Problem as problem:
                assert problem.retry_after_s >= 1
        elif act < 0.6:
            try:
                waits[name].append(gate.queue(name, draw.choice("xyz")))
            except Problem as problem:
                assert problem.retry_after_s >= 1
        elif act < 0.8 and places:
            places.pop(draw.randrange(len(places))).leave()
        elif waits[name]:
            waits[name].pop(draw.randrange(len(waits[name]))).leave()
        for own in waits.values():
            places += [waiting.place for waiting in own if waiting.place]
            own[:] = [waiting for waiting in own if not waiting.place]
        running = {name: sum(place.model == name for place in places) for name in cores}
        assert running == {name: gate.running(name) for name in cores}
        assert sum(running[name] * cores[name] for name in cores) <= 6.0 * 0.9 + 1e-6
        assert all(running[name] <= most[name] for name in cores)
        for own in waits.values():
            assert [waiting.position for waiting in own] == list(range(1, len(own) + 1))
            assert sorted(w.wait_s for w in own) == [w.wait_s for w in own]
        assert not waits["gpu"] or running["gpu"] == 2
        for caller in "xyz":
            mine = [p for p in places if p.caller == caller] + [
                w for o in waits.values() for w in o if w.caller == caller
            ]
            assert len(mine) <= 5
