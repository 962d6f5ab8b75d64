"""A session whose stages are lost and come again, in virtual time: viewers stay, and nothing comes twice."""

from __future__ import annotations

import asyncio

import pytest

from serve.end import LAST_WORD_S
from serve.problems import Problem
from serve.session import WAIT_S
from tests.serve.core_time import Eye, One, Stage, settle, virtually

FORWARD, REST = {"type": "action", "action": "forward"}, {"type": "action", "action": "none"}


def kinds(eye: Eye) -> list[str]:
    return [one["kind"] for one in eye.notices if one["type"] == "session.notice"]


class Lasting(One):
    """A session whose pipeline recovers, with somebody who watches."""

    def __init__(self, **settings):
        super().__init__(recovers=True, **settings)
        self.eye = Eye()
        self.session.attach(self.eye)

    async def lose(self, *stages: Stage) -> None:
        for stage in stages:
            stage.close()
        await settle()

    async def back(self, which: int) -> Stage:
        """A stage in the place of one that has gone."""
        _, changes = self.model.opened[0]
        return await self.port.connect(changes[("source", "sink")[which]]["session"])

    async def source_back(self, chunk: int, sampled=()) -> Stage:
        self.source = await self.back(0)
        await self.source.say("resume", chunk=chunk, sampled=list(sampled))
        return self.source

    async def sink_back(self) -> Stage:
        self.sink = await self.back(1)
        await self.sink.say("start", fps=16, height=32, width=32, sound=True)
        return self.sink

    async def picture(self, frame: int, chunk: int, key: bool = False) -> None:
        await self.sink.say("video", b"p", codec="h264", key=key, pts=frame * 5625, chunk=chunk)


@pytest.mark.parametrize("which", [0, 1])
@virtually
async def test_a_stage_that_goes_without_a_word_is_waited_for_and_viewers_stay(which):
    one = Lasting()
    await one.begin()
    await one.show(0)
    await one.picture(0, 0, key=True)
    await one.lose((one.source, one.sink)[which])
    assert one.session.state == "running" and one.model.stopped == []
    assert kinds(one.eye) == ["frozen"] and one.session.figures()["frozen"] is True
    await asyncio.sleep(2.0)
    await (one.source_back(1) if which == 0 else one.sink_back())
    assert kinds(one.eye) == ["frozen"]  # no picture has come yet
    await one.picture(1, 0, key=True)
    assert kinds(one.eye) == ["frozen", "resumed"]
    assert one.eye.notices[-1]["frozen_s"] == pytest.approx(2.0)
    assert "frozen" not in one.session.figures() and one.eye.closed is None


@virtually
async def test_both_are_lost_and_back_at_once_twice():
    one = Lasting()
    await one.begin()
    await one.sink.say("start", fps=16, height=32, width=32, sound=True)
    for round in (0, 1):
        await one.show(round)
        await one.picture(12 * round + 4, round, key=True)
        await one.lose(one.source, one.sink)
        await asyncio.sleep(1.0)
        source, sink = one.back(0), one.back(1)
        one.source, one.sink = await asyncio.gather(source, sink)
        # The first pair is lost again before a picture came.
        await one.lose(one.source, one.sink)
        await one.source_back(round + 1)
        await one.sink_back()
        assert one.sink.of("hello")[0]["frame"] == 12 * round + 5 and one.sink.of("hello")[0]["chunk"] == round
        await one.picture(12 * round + 5, round, key=True)
    assert kinds(one.eye) == ["frozen", "resumed"] * 2
    assert one.session.state == "running" and len(one.eye.chunks) == 2


@virtually
async def test_one_that_does_not_come_back_fails_the_session():
    one = Lasting(lease_s=10, idle_s=10)
    await one.begin()
    await one.lose(one.source)
    await one.wait(WAIT_S - 1)
    assert one.session.state == "running"
    await one.wait(2)
    assert (one.session.state, one.session.reason, one.eye.closed) == ("ended", "failed", "failed")
    assert one.port.expected == {} and one.over == [one.session]


@virtually
async def test_the_time_of_one_that_came_back_does_not_count_for_the_other():
    one = Lasting()
    await one.begin()
    await one.lose(one.source)
    await one.wait(WAIT_S - 5)
    await one.source_back(0)
    await one.lose(one.sink)
    await one.wait(WAIT_S - 5)
    assert one.session.state == "running"
    await one.wait(6)
    assert one.session.reason == "failed"


@virtually
async def test_one_that_says_it_was_all_or_ends_is_not_waited_for():
    one = Lasting()
    await one.begin()
    one.source.leave()
    await settle()
    assert kinds(one.eye) == []
    one.session.stop("stopped")
    await settle()
    assert one.session.reason == "stopped" and kinds(one.eye) == []


@virtually
async def test_what_cannot_be_understood_fails_it_whatever_recovers():
    one = Lasting()
    await one.begin()
    await one.sink.say("chunk")
    assert (one.session.state, one.session.reason) == ("ended", "failed")


@virtually
async def test_clocks_stand_still_meanwhile():
    one = Lasting(lease_s=25, idle_s=40, session_s=100)
    places = []
    one.session.postponed = places.append
    await one.begin()
    one.session.detach(one.eye)
    expires_at = one.session.expires_at
    await one.wait(20)
    one.model.frozen = "a worker is lost"
    one.session.freeze(one.model.frozen)
    left = one.session.figures()["seconds_left"]
    await one.wait(1000)
    assert one.session.state == "running" and one.session.figures()["seconds_left"] == left
    one.model.frozen = None
    await one.show(0)  # nobody is sent pictures
    assert one.session.expires_at == pytest.approx(expires_at + 1000, abs=1) and places == [pytest.approx(1000, abs=1)]
    await one.wait(4)
    assert one.session.state == "running"
    await one.wait(2)
    assert one.session.reason == "lease"


@virtually
async def test_who_comes_or_acts_meanwhile_counts_from_when_it_goes_on():
    one = Lasting(lease_s=25, idle_s=40)
    await one.begin()
    await one.wait(10)
    one.session.freeze("x")
    await one.wait(300)
    one.session.event("a", FORWARD)
    one.session.detach(one.eye)
    await one.picture(0, 0, key=True)
    await one.wait(24)
    assert one.session.state == "running"
    await one.wait(2)
    assert one.session.reason == "lease"


@virtually
async def test_the_one_that_plays_is_told_where_viewers_are_and_all_that_they_want():
    one = Lasting()
    await one.begin()
    await one.sink.say("start", fps=16, height=32, width=32, sound=True)
    one.session.follow(one.eye, 300_000, 2)
    one.session.event("stop", {"type": "interrupt"})
    await one.show(0, events=["1"])
    for frame in range(4):
        await one.picture(frame, 0, key=not frame)
    await one.sink.say("sound", b"s", pts=960, chunk=0)
    await one.lose(one.sink)
    await one.sink_back()
    (hello,) = one.sink.of("hello")
    where = {"again": True, "chunk": 0, "frame": 4, "sound_at": 1920, "muted": True, "loud_from": 0}
    assert hello == {"margin_s": one.serve.margin_s, **where}
    assert one.sink.of("want") == [{"codecs": ["h264"], "thin": []}]
    assert {"bits_per_second": 300_000, "every": 2, "thin": False} in one.sink.of("rate")
    assert one.sink.of("mute") == []  # it is in the greeting


@virtually
async def test_what_was_asked_and_not_sampled_is_said_again_and_shows_later():
    one = Lasting()
    await one.begin()
    asked = [("a", FORWARD), ("b", {"type": "prompt", "prompt": "by day"}), ("c", {"type": "interrupt"})]
    for id, event in asked:
        one.session.event(id, event)
    await one.show(0, events=["1"])
    await one.lose(one.source)
    one.session.event("d", {"type": "prompt", "prompt": "by night"})
    await one.source_back(2, [[0, ["1"], None], [1, ["2"], None]])  # `sampled` of chunk 1 was lost
    one.session.event("e", REST)
    said = [(head["id"], head["event"]["type"]) for head in one.source.of("event")]
    assert said == [("3", "interrupt"), ("4", "prompt"), (None, "action"), ("5", "action")]
    assert one.source.of("event")[2]["event"] == FORWARD  # which is held
    await one.sink.say("chunk", chunk=1, frames=12, first_frame=12, pts=67_500, slack_s=0.1)
    await one.show(2, events=["3", "4", "5"])
    assert [chunk.events for chunk in one.eye.chunks] == [("a",), ("b",), ("c", "d", "e")]


@virtually
async def test_no_place_of_a_worlds_camera_is_lost_with_the_one_that_sampled():
    one = Lasting()
    await one.begin()
    at = [[0.0, 0.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.4, 8.0, 0.0]]
    await one.source.say("sampled", chunk=0, events=[], silence_s=0, held_s=0, late_s=0, at=at[0])
    await one.lose(one.source)
    await one.source_back(2, [[0, [], at[0]], [1, [], at[1]]])  # `sampled` of chunk 1 was lost
    for chunk in range(2):
        await one.show(chunk)
    assert [shown.told["at"] for shown in one.eye.chunks] == at


@virtually
async def test_an_action_that_was_not_sampled_is_the_one_that_is_held():
    one = Lasting()
    await one.begin()
    one.session.event("a", FORWARD)
    await one.show(0, events=["1"])
    one.session.event("b", REST)
    await one.lose(one.source)
    await one.source_back(1)
    assert [(head["id"], head["event"]) for head in one.source.of("event")] == [("2", REST)]


@virtually
async def test_a_chunk_that_is_told_of_again_changes_nothing():
    one = Lasting()
    await one.begin()
    one.session.event("a", {"type": "interrupt"})
    one.session.speech(bytes(32_000))
    await one.source.say("sampled", chunk=0, events=["1"], silence_s=0, held_s=1.0, late_s=0.5)
    await one.sink.say("chunk", chunk=0, frames=12, first_frame=0, pts=0, slack_s=0.1)
    unmuted = one.sink.of("unmute")
    for _ in range(2):
        await one.source.say("sampled", chunk=0, events=["1"], silence_s=0, held_s=0.0, late_s=0.5)
    assert one.sink.of("unmute") == unmuted == [{"chunk": 0}] and one.session.speech_held_s == 1.0
    late = "everframe_audio_late_seconds_total"
    assert one.metrics.registry.get_sample_value(late, {"model": "other"}) == 0.5
    await one.sink.say("chunk", chunk=1, frames=12, first_frame=12, pts=67_500, slack_s=0.1)
    assert [chunk.events for chunk in one.eye.chunks] == [("a",), ()]


@virtually
async def test_a_source_is_given_the_picture_again_and_no_sound_before_it_goes_on():
    one = Lasting()
    await one.session.begin({}, b"png")
    one.source, one.sink = await one.model.stages(0)
    await one.lose(one.source)
    one.session.sound(b"\x10\x27" * 320, 0, None)
    with pytest.raises(Problem, match="stands still"):
        one.session.speech(bytes(3200))
    await one.source_back(0)
    assert [body for kind, body, _ in one.source.heard if kind == "hello"] == [b"png"]
    one.session.sound(b"\x10\x27" * 320, 320, None)
    assert one.source.of("sound") == []  # dropped while it stands still
    await one.picture(0, 0, key=True)
    one.session.sound(b"\x10\x27" * 320, 640, None)
    assert one.source.of("sound") == [{"at": 640}]


@virtually
async def test_another_that_comes_before_the_first_is_known_to_have_gone_hears_what_it_said_last():
    one = Lasting()
    await one.begin()
    await one.sink.say("start", fps=16, height=32, width=32, sound=True)
    await one.show(0)
    first, coming = one.sink, asyncio.ensure_future(one.sink_back())
    await settle()
    await first.say("video", b"p", codec="h264", key=True, pts=7 * 5625, chunk=0)
    first.close()
    second = await coming
    await settle()
    assert second.of("hello")[0]["frame"] == 8
    # One whose host is gone says nothing, not even that it goes.
    third = await one.sink_back()
    assert third.of("hello") == []
    await asyncio.sleep(2 * LAST_WORD_S)
    assert second.closed and len(third.of("hello")) == 1
    await one.picture(8, 0, key=True)
    assert kinds(one.eye) == ["frozen", "resumed"]


@virtually
async def test_of_two_that_come_in_its_place_the_newest_is_greeted():
    one = Lasting()
    await one.begin()
    second, third = await one.back(0), await one.back(0)
    await asyncio.sleep(2 * LAST_WORD_S)
    assert second.of("hello") == [] and third.of("hello") == [{}]


@virtually
async def test_a_chunk_that_was_late_for_that_counts_as_late_for_nobody_and_says_nothing_of_its_way():
    one = Lasting()
    await one.begin()
    await one.show(0)
    await one.source.say("sampled", chunk=1, events=[], silence_s=0, held_s=0, late_s=0)
    one.model.frozen = "a worker is lost"
    one.session.freeze(one.model.frozen)
    await asyncio.sleep(3.0)
    one.model.frozen = None
    await one.sink.say("chunk", chunk=1, frames=12, first_frame=12, pts=67_500, slack_s=-3.0)
    assert one.lates[-1] == ("maze", 0.0) and one.session.figures()["late_chunks"] == 0
    assert one.source.of("slack")[-1] == {"seconds": -3.0 - one.serve.margin_s, "late_s": 3.0, "again": True}
    await one.show(2, slack_s=-0.5)
    assert one.lates[-1] == ("maze", 0.5) and "again" not in one.source.of("slack")[-1]


@virtually
async def test_a_pipeline_that_stands_still_freezes_it_though_its_stages_are_there():
    one = Lasting()
    await one.begin()
    await one.show(0)
    one.model.frozen = "its plan changes"
    one.session.freeze(one.model.frozen)
    await one.picture(1, 0)  # of a chunk that was there
    assert kinds(one.eye) == ["frozen"] and len(one.eye.packets) == 1
    one.session.freeze("again")
    await one.wait(2 * WAIT_S)  # nobody has gone who could come back
    assert one.session.state == "running"
    one.model.frozen = None
    await one.picture(2, 0)
    assert kinds(one.eye) == ["frozen", "resumed"]


@virtually
async def test_one_that_begins_while_its_pipeline_stands_still_does_so_too():
    one = Lasting()
    one.model.frozen = "a worker is lost"
    await one.begin()
    assert kinds(one.eye) == ["frozen"]
    one.model.frozen = None
    await one.picture(0, 0, key=True)
    assert kinds(one.eye) == ["frozen", "resumed"]


@virtually
async def test_an_end_that_was_lost_before_it_ever_came_is_greeted_as_the_first():
    one = Lasting()
    await one.session.begin({})
    one.session.event("a", FORWARD)
    source = await one.source_back(0)  # of a later generation
    assert [head["id"] for head in source.of("event")] == ["1"]
