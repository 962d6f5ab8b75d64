"""Who is let in, who waits, and what is left when all have gone, in virtual time with models that are none."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve.admission import Admission
from serve.gateway import ENDED, Gateway
from serve.logs import hidden
from serve.metrics import Metrics
from serve.problems import Problem
from serve.redaction import HIDDEN
from serve.session import Session
from serve.tracing import Tracing
from serve.wanted import Wanted
from tests.serve.core_time import REFUSED, Eye, Model, Port, settle, virtually


class Pictures:
    """Uploads: gives pictures once it may.

    Attributes:
        asked: for what.
        hold: `picture` waits for it.
    """

    def __init__(self):
        self.asked: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def picture(self, given: str) -> bytes:
        self.asked.append(given)
        await self.hold.wait()
        if given == "none":
            raise Problem("not_found", "there is no such upload; send it again")
        return f"picture {given}".encode()


class House:
    """A gateway with models `maze` and `head`, each for so many sessions."""

    def __init__(self, most: int = 1, **settings: Any):
        self.loop = asyncio.get_running_loop()
        settings = {"sessions_per_caller": 100, "lease_s": 30, "idle_s": 10_000} | settings
        self.serve, self.port, self.pictures = ServeConfig(**settings), Port(), Pictures()
        self.metrics = Metrics(self.loop.time)
        self.admission = Admission(self.serve, self.loop.time, 8, self.metrics.rejected)
        self.models = {name: Model(self.port, name) for name in ("maze", "head")}
        for name in self.models:
            self.admission.model(name, most / (1 - self.serve.headroom), most=most)
        given = (self.serve, self.port, dict(self.models), self.admission, self.metrics, self.pictures)
        self.gateway = Gateway(*given, Tracing({}), self.loop.time)

    async def open(self, **wanted: Any) -> Session:
        session = await self.gateway.create({"model": "maze", **wanted}, "10.0.0.1")
        return session

    async def end(self, session: Session) -> None:
        session.stop("stopped")
        await settle()

    def nothing_is_left(self) -> bool:
        """Whether no session, place, picture, address or waiting one is held any more."""
        gateway = self.gateway
        held = (gateway._sessions, gateway._places, gateway._queued, gateway._changes, gateway._pictures)
        places = [self.admission.running(name) + self.admission.waiting(name) for name in self.models]
        return not any(held) and not any(places) and not self.port.expected


@asynccontextmanager
async def house(most: int = 1, **settings: Any):
    made = House(most, **settings)
    try:
        yield made
    finally:
        await made.gateway.close()


@virtually
async def test_a_session_takes_a_place_and_gives_it_back():
    async with house(2) as one:
        first, second = await one.open(), await one.open(seed=7, prompt="by day")
        assert (first.state, second.state) == ("running", "running")
        _, changes = one.models["maze"].opened[1]
        assert (changes["seed"], changes["prompt"]) == (7, "by day")
        assert one.gateway.offers()[0]["running"] == 2
        with pytest.raises(Problem) as caught:
            await one.open()
        assert (caught.value.type, caught.value.status) == ("full", 503) and caught.value.retry_after_s > 0
        await one.open(model="head")
        await one.end(first)
        await one.open()
        assert one.gateway.session(first.id) is first and first.state == "ended"


@virtually
async def test_a_secret_is_its_own_sessions_as_long_as_that_is_told_of():
    async with house(2) as one:
        first, second = await one.open(), await one.open(model="head")
        for session in (first, second):
            assert one.gateway.owned(session.secret) == session.id
        for wrong in ("", first.id, first.secret[:-1], "\xe9"):
            assert one.gateway.owned(wrong) is None
        await one.end(first)
        assert one.gateway.owned(first.secret) == first.id


@virtually
async def test_who_waits_is_told_where_and_comes_in_in_order():
    async with house(1) as one:
        first = await one.open()
        waiting = [await one.open(queue=True) for _ in range(3)]
        for session in waiting:
            session.attach(Eye())
        assert [session.state for session in waiting] == ["queued"] * 3
        assert [session.waiting[0] for session in waiting] == [1, 2, 3]
        assert all(session.waiting[1] > 0 for session in waiting)
        figures = [session.figures() for session in waiting]
        assert [(told["position"], told["wait_s"]) for told in figures] == [
            (session.waiting[0], round(session.waiting[1])) for session in waiting
        ]
        await one.end(waiting[1])
        assert [waiting[0].waiting[0], waiting[2].waiting[0]] == [1, 2]
        assert waiting[1].state == "ended" and len(one.models["maze"].opened) == 1
        await one.end(first)
        assert waiting[0].state == "running" and waiting[0].waiting is None and waiting[2].waiting[0] == 1
        assert not {"position", "wait_s"} & set(waiting[0].figures())
        await one.end(waiting[0])
        assert waiting[2].state == "running"
        await one.end(waiting[2])
        assert one.nothing_is_left()


@virtually
async def test_who_waits_and_is_watched_by_nobody_gives_up_after_a_lease():
    async with house(1) as one:
        first = await one.open()
        first.attach(Eye())
        waiting = await one.open(queue=True)
        await asyncio.sleep(29)
        assert waiting.state == "queued"
        await asyncio.sleep(2)
        assert (waiting.state, waiting.reason) == ("ended", "lease") and one.admission.waiting("maze") == 0


@virtually
async def test_a_queue_that_is_full_and_a_caller_with_too_many_are_refused():
    async with house(1, queue=1) as one:
        await one.open()
        await one.open(queue=True)
        with pytest.raises(Problem) as caught:
            await one.open(queue=True)
        assert caught.value.status == 503
    async with house(5, sessions_per_caller=2) as one:
        await one.open()
        await one.open()
        with pytest.raises(Problem) as caught:
            await one.open(queue=True)
        assert caught.value.status == 429 and caught.value.retry_after_s > 0
        await one.gateway.create({"model": "maze"}, "10.0.0.2")


@pytest.mark.parametrize(
    "wanted",
    [
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": 1e9},
        {"model": "nowhere"},
        {"image": "none"},
        {"intrinsics": [416.0, 416.0, 416.0, 240.0]},
    ],
)
@virtually
async def test_what_cannot_be_asked_for_is_refused_and_leaves_nothing(wanted):
    async with house() as one:
        with pytest.raises(Problem):
            await one.open(**wanted)
        assert one.models["maze"].opened == [] and one.nothing_is_left()


@virtually
async def test_a_session_says_what_its_lens_is():
    async with house() as one:
        one.models["maze"].offer = one.models["maze"].offer | {"poses": True}
        await one.open(intrinsics=[500.0, 500.0, 416.0, 240.0])
        source = one.models["maze"].opened[0][1]["source"]
        assert source["intrinsics"] == [500.0, 500.0, 416.0, 240.0] and source["session"]
    for given in ([1.0], [0.0, 1.0, 1.0, 1.0]):
        with pytest.raises(UserError, match="are four finite numbers"):
            Wanted(intrinsics=given)


@pytest.mark.parametrize("raised", [REFUSED, RuntimeError("gone"), ValueError("a fault of ours")])
@pytest.mark.parametrize("queue", [False, True])
@virtually
async def test_a_stream_that_cannot_be_opened_leaves_nothing(raised, queue):
    async with house() as one:
        if queue:
            first = await one.open()
            waiting = await one.open(queue=True, image="x")
            one.models["maze"].refuses = raised
            await one.end(first)
            assert (waiting.state, waiting.reason) == ("ended", "failed")
        else:
            one.models["maze"].refuses = raised
            with pytest.raises((Problem, ValueError)):
                await one.open(image="x")
        assert one.nothing_is_left()
        await one.open()


@virtually
async def test_a_picture_goes_to_the_stage_before_all_else_and_names_no_file():
    async with house(1) as one:
        first = await one.open(image="x")
        waiting = await one.open(image="y", queue=True)
        first.event("e", {"type": "action", "action": "forward"})
        source, _ = await one.models["maze"].stages(0)
        assert source.heard[0] == ("hello", b"picture x", {}) and source.heard[1][0] == "event"
        assert list(one.models["maze"].opened[0][1]["source"]) == ["session"]
        await one.end(first)
        source, _ = await one.models["maze"].stages(1)
        assert source.heard[0] == ("hello", b"picture y", {})
        await one.end(waiting)
        plain = await one.open()
        source, _ = await one.models["maze"].stages(2)
        assert source.heard[0] == ("hello", b"", {})
        await one.end(plain)
        assert one.nothing_is_left()


@virtually
async def test_nothing_is_decoded_for_who_is_not_let_in():
    async with house(1, queue=1) as one:
        await one.open()
        await one.open(queue=True)
        for queue in (False, True):
            with pytest.raises(Problem):
                await one.open(image="x", queue=queue)
        assert one.pictures.asked == []


@virtually
async def test_a_secret_is_looked_for_in_logs_as_long_as_its_session_is_told_of_and_never_of_who_is_refused():
    async with house(1) as one:
        known, first = len(hidden), await one.open()
        assert len(hidden) == known + 1 and hidden(f"{first.secret} x") == f"{HIDDEN} x"
        known = len(hidden)
        for wanted in ({}, {"model": "nowhere"}, {"model": "head", "image": "none"}):
            with pytest.raises(Problem):
                await one.open(**wanted)
        assert len(hidden) == known
        await one.end(first)
        for _ in range(ENDED):
            await one.end(await one.open())
        assert one.gateway.session(first.id) is None and first.secret not in hidden._known


@pytest.mark.parametrize("queue", [False, True])
@virtually
async def test_a_place_is_held_while_a_picture_is_decoded_and_given_back_if_it_cannot_be(queue):
    async with house(1) as one:
        if queue:
            first = await one.open()
        one.pictures.hold.clear()
        opening = asyncio.ensure_future(one.open(image="none", queue=queue))
        await settle()
        assert one.admission.running("maze") + one.admission.waiting("maze") == 1 + queue
        if queue:
            await one.end(first)
        one.pictures.hold.set()
        with pytest.raises(Problem):
            await opening
        assert one.models["maze"].opened[int(queue) :] == [] and one.nothing_is_left()


@virtually
async def test_one_whose_turn_comes_while_its_picture_is_decoded_begins_with_it():
    async with house(1) as one:
        first = await one.open()
        one.pictures.hold.clear()
        opening = asyncio.ensure_future(one.open(image="x", queue=True))
        await settle()
        await one.end(first)
        one.pictures.hold.set()
        session = await opening
        source, _ = await one.models["maze"].stages(1)
        assert session.state == "running" and source.heard[0][1] == b"picture x"


@virtually
async def test_a_drain_that_begins_while_a_picture_is_decoded_lets_nobody_in():
    async with house(1) as one:
        one.pictures.hold.clear()
        opening = asyncio.ensure_future(one.open(image="x"))
        await settle()
        one.gateway.begin_drain()
        one.pictures.hold.set()
        with pytest.raises(Problem) as caught:
            await opening
        assert caught.value.type == "draining" and one.nothing_is_left()


@virtually
async def test_a_stream_that_ends_before_its_number_is_known_ends_its_session():
    """It failed at once: what is told of it comes before the answer to who opened it is read."""
    async with house() as one:
        model = one.models["maze"]

        async def opens(name, changes):
            model.opened.append((name, changes))
            model.on_ended(0, {"stream": name, "error": {"kind": "fault", "line": "no"}})
            return 0

        model.open = opens
        session = await one.open()
        await settle()
        assert (session.state, session.reason) == ("ended", "failed") and one.nothing_is_left()


@virtually
async def test_one_that_leaves_just_as_it_gets_its_place_leaves_nothing():
    async with house() as one:
        first, waiting = await one.open(), await one.open(queue=True)
        first.stop("stopped")
        while waiting.id in one.gateway._queued:
            await asyncio.sleep(0)
        waiting.stop("stopped")
        await settle()
        assert waiting.state == "ended" and one.nothing_is_left()


@virtually
async def test_a_caller_that_goes_away_while_a_session_is_opened_leaves_nothing():
    async with house() as one:
        one.models["maze"].hold.clear()
        opening = asyncio.ensure_future(one.open(image="x"))
        await settle()
        opening.cancel()
        await settle()
        assert opening.cancelled() and one.nothing_is_left()


@virtually
async def test_a_pipeline_that_is_lost_takes_its_sessions_and_no_others():
    async with house(2) as one:
        sessions = [await one.open(), await one.open(model="head")]
        waiting = [await one.open(queue=True) for _ in range(2)]
        eyes = [Eye() for _ in sessions]
        for session, eye in zip(sessions, eyes, strict=True):
            session.attach(eye)
        one.models["maze"].lost = "worker 1 is lost"
        await asyncio.sleep(1)
        assert sessions[0].reason == "failed" and eyes[0].closed == "failed"
        assert all(session.state == "ended" for session in waiting)
        assert sessions[1].state == "running" and eyes[1].closed is None
        assert any("worker 1 is lost" in reason for reason in one.gateway.reasons())


@virtually
async def test_a_drain_lets_nobody_in_tells_everyone_and_ends_what_is_left():
    async with house(2, drain_s=20) as one:
        stays, leaves = await one.open(), await one.open()
        waiting, eye = await one.open(queue=True), Eye()
        for session in (stays, leaves):
            session.attach(eye)
        one.gateway.begin_drain()
        one.gateway.begin_drain()
        await settle()
        assert waiting.reason == "drained"
        assert [notice["kind"] for notice in eye.notices] == ["draining"] * 2 and eye.notices[0]["seconds_left"] == 20
        with pytest.raises(Problem) as caught:
            await one.open()
        assert caught.value.type == "draining"
        await one.end(leaves)
        await asyncio.sleep(19)
        assert stays.state == "running"
        await asyncio.sleep(2)
        assert (stays.state, stays.reason) == ("ended", "drained") and one.nothing_is_left()


@virtually
async def test_sessions_come_and_go_and_what_is_remembered_is_bounded():
    known = len(hidden)
    async with house(3) as one:
        for round_ in range(ENDED):
            sessions = [await one.open(image="x") for _ in range(3)]
            if round_ % 2:
                waiting = await one.open(queue=True)
                await one.end(sessions.pop())
                sessions.append(waiting)
            for session in sessions:
                await one.end(session)
        assert one.nothing_is_left()
        assert len(one.gateway._ended) == ENDED and not one.gateway._numbers and not one.gateway._work
        assert len(hidden) - known <= 2 * ENDED
        assert "everframe_sessions_running" in one.gateway.metrics()[0].decode()


@virtually
async def test_closing_ends_sessions_at_once():
    one = House()
    session, eye = await one.open(), Eye()
    session.attach(eye)
    await one.gateway.close()
    assert eye.closed == "drained" and not one.port.listening


@virtually
async def test_a_model_that_is_gone_has_no_places_and_opens_nothing():
    async with house(2) as one:
        one.models["maze"].lost = "worker 0 is lost"
        maze, head = one.gateway.offers()
        assert (maze["capacity"], maze["gone"]) == (0, True) and head["capacity"] and "gone" not in head
        with pytest.raises(Problem) as caught:
            await one.open()
        assert (caught.value.type, caught.value.status, caught.value.retry_after_s) == ("gone", 503, None)
        session = await one.gateway.create({}, "x")
        assert session.served.name == "head", "who names none has one that is there"
        await one.end(session)
        assert one.nothing_is_left() and not one.models["maze"].opened and one.gateway.gone is None


@virtually
async def test_a_server_whose_models_are_all_gone_ends():
    async with house() as one:
        for model in one.models.values():
            model.lost = "worker 0 is lost"
        await asyncio.wait_for(one.gateway.draining.wait(), 5)
        assert "worker 0 is lost" in one.gateway.gone


@virtually
async def test_one_that_others_may_join_goes_on():
    async with house(join=2) as one:
        for model in one.models.values():
            model.lost = "worker 0 is lost"
        await asyncio.sleep(5)
        assert not one.gateway.draining.is_set() and one.gateway.gone is None


@virtually
async def test_seconds_that_cannot_be_are_one_kind_of_problem():
    async with house() as one:
        for seconds in (-1.0, 0.0, 1e9, float("nan")):
            with pytest.raises(Problem) as caught:
                await one.open(seconds=seconds)
            assert caught.value.type == "unprocessable"
            assert caught.value.detail.startswith(f"seconds={seconds:g}: must be above 0")
