"""What a gateway does when a model's pipeline goes from one generation to the next, in virtual time."""

from __future__ import annotations

import pytest

from conf.errors import UserError
from serve.problems import Problem
from serve.resources import CORES, Memory, Needs
from serve.served import Generations
from tests.serve.core_time import Eye, settle, virtually
from tests.serve.test_core_gateway import house


def value(one, name: str, **labels: str) -> float | None:
    return one.metrics.registry.get_sample_value(f"everframe_{name}", labels)


@virtually
async def test_all_sessions_of_the_model_stand_still_and_no_others():
    async with house(3) as one:
        maze = one.models["maze"]
        sessions = [await one.open(), await one.open(), await one.open(model="head")]
        eyes = [Eye() for _ in sessions]
        for session, eye in zip(sessions, eyes, strict=True):
            session.attach(eye)
        maze.frozen = "worker 1 is lost"
        maze.on_frozen(True, maze.frozen)
        said = [[notice["kind"] for notice in eye.notices] for eye in eyes]
        assert said == [["frozen"], ["frozen"], []]
        assert one.gateway.reasons() == ["maze: its streams stand still (worker 1 is lost)"]
        ends = one.gateway._places[sessions[0].id].ends
        maze.frozen = None
        one.loop._now += 3.0
        maze.on_frozen(False, "")
        assert one.gateway.reasons() == [] and len(eyes[0].notices) == 1  # no picture has come
        _, sink = await maze.stages(0)
        await sink.say("video", b"p", codec="h264", key=True, pts=0, chunk=0)
        assert eyes[0].notices[-1]["kind"] == "resumed" and len(eyes[1].notices) == 1
        assert value(one, "generations_total", model="maze") == 1 and value(one, "generations_total", model="head") == 0
        assert value(one, "frozen_seconds_sum", model="maze") == pytest.approx(3.0, abs=0.3)
        assert value(one, "frozen_seconds_count", model="maze") == 1
        assert one.gateway._places[sessions[0].id].ends == pytest.approx(ends + 3.0, abs=0.3)


@virtually
async def test_what_a_slower_plan_does_not_keep_ends_the_newest_first_with_a_reason():
    async with house(4) as one:
        sessions = [await one.open() for _ in range(3)]
        other, eye = await one.open(model="head"), Eye()
        sessions[2].attach(eye)
        one.models["maze"].on_planned(0.3, None)  # 6.7 sessions were kept, and 2 are now
        await settle()
        assert [session.reason for session in sessions] == ["", "", "capacity"] and eye.closed == "capacity"
        assert other.reason == "" and value(one, "session_end_total", model="maze", reason="capacity") == 1
        assert one.admission.capacity("maze") == 2  # who is in stays; nobody more
        await one.end(sessions[0])
        assert one.admission.capacity("maze") == 1  # of 2, a share of `serve.headroom` is kept free
        one.models["maze"].on_planned(1.0, None)
        assert one.admission.capacity("maze") == 4


@virtually
async def test_what_waits_comes_in_when_a_faster_plan_has_room():
    async with house(4) as one:
        one.models["maze"].on_planned(0.25, None)
        first, second = await one.open(), await one.open(queue=True)
        assert (first.state, second.state) == ("running", "queued")
        one.models["maze"].on_planned(1.0, None)
        await settle()
        assert second.state == "running"


def test_needs_follow_the_plan():
    here, card = Memory("here", 10, 0, 100), Memory("host/0", 10, 0, 100)
    needs = Needs(4.0, {CORES: 0.5, "host/1": 0.25}, [here], 8)
    slower = needs.at(0.5)
    assert (slower.rate, slower.shares, slower.memory, slower.most) == (2.0, {CORES: 0.5, "host/1": 0.5}, [here], 8)
    moved = needs.at(2.0, [card])
    assert (moved.rate, moved.shares, moved.memory) == (8.0, {CORES: 0.5, "host/0": 0.125}, [card])


def test_what_is_told_of_a_generation_is_understood():
    told, one = [], Generations()
    one.on_frozen, one.on_planned = lambda *given: told.append(given), lambda *given: told.append(given)
    one.turned({"frozen": True, "number": 1, "why": "worker 1 is lost"})
    assert one.frozen == "worker 1 is lost"
    room = {"memory": "here", "stream_bytes": 1, "pooled": 2, "free_bytes": 3}
    one.turned({"frozen": False, "number": 1, "frozen_s": 2.5, "speed": 0.5, "rooms": [room]})
    assert one.frozen is None
    assert told == [(True, "worker 1 is lost"), (False, ""), (0.5, [Memory("here", 1, 2, 3)])]
    one.turned({"frozen": True, "number": 2})
    assert one.frozen


@virtually
async def test_another_plan_is_handed_to_the_pipeline_that_is_meant():
    async with house() as one:
        assert await one.gateway.change({"workers": 3}, "head") == ("head", 1)
        assert one.models["head"].changed == [{"workers": 3}] and one.models["maze"].changed == []
        with pytest.raises(Problem, match="several are served"):
            await one.gateway.change({"workers": 3})
        with pytest.raises(Problem, match="is not served here"):
            await one.gateway.change({"workers": 3}, "none")
        one.models["head"].refuses = UserError("plan.workers=99", "has no devices", "use fewer")
        with pytest.raises(Problem) as caught:
            await one.gateway.change({"workers": 99}, "head")
        assert caught.value.type == "unprocessable" and "plan.workers=99" in caught.value.detail
        one.models["head"].refuses = RuntimeError("secrets")
        with pytest.raises(Problem) as caught:
            await one.gateway.change({}, "head")
        assert caught.value.type == "not_ready" and "secrets" not in caught.value.detail
        del one.gateway.served["head"]
        assert await one.gateway.change({"workers": 2}) == ("maze", 1)
