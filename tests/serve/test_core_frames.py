"""A camera's pictures from a viewer's message to the stage, and back as what a chunk shows of them."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import pytest

from serve import ends as gateway_ends
from serve import realtime
from serve.camera import BURST, KEPT, MOST_BYTES, MOST_PIXELS, TURN_S, Sight, Sighted, check, size
from serve.incoming import LATEST_S, MOST_SOUND, message
from serve.limits import Limit
from serve.problems import Problem
from stages.sources.fitting import Fit
from tests.serve.core_ends import End
from tests.serve.core_time import Eye, One, settle, virtually
from tests.serve.seen import brightness, jpeg
from tests.serve.test_core_source import Stage
from tests.serve.test_realtime import begun, running, site  # noqa: F401

# -- at the stage ------------------------------------------------------------------------------------------------------


def test_what_has_come_shows_in_the_next_chunk_and_is_told_with_it():
    with End() as end:
        one = Stage(end)
        frames = one.source.film(16, Fit(32, 32))
        one.source.begin()
        assert brightness(frames.take(2)) == [128, 128] and frames.accepted is None
        one.source.sampled(0)
        assert end.hear("sampled")[0]["frame"] is None
        for number in range(4):
            one.clock.now += 1 / 16
            one.say("frame", jpeg(40 * number), at=number / 16)
        one.source.begin()
        assert brightness(frames.take(4)) == pytest.approx([128, 0, 40, 80], abs=2)
        assert frames.accepted == 100 + 1 / 16
        one.source.sampled(1)
        assert end.hear("sampled")[0]["frame"] == [0.0, 1]
        one.source.begin()
        assert brightness(frames.take(2)) == pytest.approx([120, 120], abs=2), "what does not come is held"
        one.source.close()


def test_a_stream_that_sees_nothing_is_told_of_none():
    with End() as end:
        one = Stage(end)
        one.say("frame", jpeg(1), at=0.0)
        assert one.sample(0)[0]["frame"] is None
        one.source.close()


def test_what_was_seen_while_the_stream_stood_still_is_passed_over():
    with End() as end:
        one = Stage(end)
        frames = one.source.film(16, Fit(32, 32))
        one.say("frame", jpeg(10), at=0.0)
        one.say("frame", jpeg(20), at=0.1)
        one.source.begin()
        frames.take(2)
        one.source.wire(threading.Event(), one._steer, one._slack)
        for number in range(30):
            one.end.say("frame", jpeg(100 + number), at=0.1 + (1 + number) / 16)
        one.say("slack", seconds=0, late_s=0)  # all has come
        one.source.begin()
        assert brightness(frames.take(2))[-1] >= 126
        one.source.close()


# -- at the gateway ----------------------------------------------------------------------------------------------------


@virtually
async def test_a_picture_goes_to_the_stage_as_it_came_and_its_time_comes_back():
    one, eye = One(), Eye()
    source, sink = await one.begin()
    one.session.attach(eye)
    one.session.frame(jpeg(7), 3.5, eye)
    assert [(kind, body, head) for kind, body, head in source.heard if kind == "frame"] == [
        ("frame", jpeg(7), {"at": 3.5})
    ]
    await one.wait(0.5)
    told = {"events": [], "silence_s": 0, "held_s": 0, "late_s": 0}
    await source.say("sampled", chunk=0, frame=[3.5, 4], **told)
    await one.wait(0.25)
    head = {"frames": 12, "slack_s": 0.1}
    await sink.say("chunk", chunk=0, first_frame=0, pts=0, **head)
    shown = eye.chunks[0].camera
    assert shown == Sight(3.5, 0.25, pytest.approx(0.75 + 0.25))
    assert eye.chunks[0].told["camera"] == {"at": 3.5, "after_s": 0.25, "latency_s": shown.latency_s}
    assert one.session.figures()["camera_s"] == pytest.approx(1.0)
    said = one.metrics.text()[0].decode()
    assert 'everframe_camera_to_frame_seconds_sum{model="other"} 1.0' in said
    await source.say("sampled", chunk=1, frame=None, **told)
    await sink.say("chunk", chunk=1, first_frame=12, pts=67_500, **head)
    assert eye.chunks[1].camera is None and "camera" not in eye.chunks[1].told
    assert eye.chunks[1].latency_s is None, "an event's time is another matter"


@virtually
async def test_one_camera_is_looked_at_at_a_time():
    one, here, there = One(), Eye(), Eye()
    source, _ = await one.begin()
    for eye in (here, there):
        one.session.attach(eye)
    one.session.frame(jpeg(1), 1.0, here)
    one.session.frame(jpeg(2), 50.0, there)
    assert [head["at"] for head in source.of("frame")] == [1.0]
    await one.wait(TURN_S + 0.25)
    one.session.frame(jpeg(2), 51.0, there)
    assert [head["at"] for head in source.of("frame")] == [1.0, 51.0]
    one.session.detach(there)
    one.session.frame(jpeg(1), 2.0, here)
    assert [head["at"] for head in source.of("frame")] == [1.0, 51.0, 2.0]


@virtually
async def test_who_is_seen_is_not_idle():
    one = One(idle_s=2.0)
    await one.begin()
    one.session.attach(Eye())
    for number in range(8):
        await one.wait(1)
        one.session.frame(jpeg(1), float(number), None)
    assert one.session.state == "running"
    await one.wait(3)
    assert one.session.reason == "idle"


@virtually
async def test_nothing_is_sent_to_who_does_not_take_it():
    one = One(recovers=True)
    one.session.frame(jpeg(1), 0.0, None)  # before it has begun
    source, _ = await one.begin()
    one.session.freeze("a worker is lost")
    one.session.frame(jpeg(1), 1.0, None)
    assert source.of("frame") == []
    blind = One()
    blind.model.offer["sees"] = False
    source, _ = await blind.begin()
    with pytest.raises(Problem, match="maze takes no pictures; leave them out"):
        blind.session.frame(jpeg(1), 0.0, None)
    await settle()
    assert source.of("frame") == []


@virtually
async def test_a_stage_that_is_behind_is_spared():
    one = One()
    source, _ = await one.begin()
    one.session._ends._source.connection = SimpleNamespace(
        behind=gateway_ends.BEHIND + 1, send=source.send, close=source.close
    )
    one.session.frame(jpeg(1), 0.0, None)
    assert source.of("frame") == []
    one.session._ends._source.connection.behind = gateway_ends.BEHIND
    one.session.frame(jpeg(1), 1.0, None)
    assert len(source.of("frame")) == 1


def test_what_is_remembered_of_pictures_is_bounded():
    seen = Sighted()
    for number in range(2 * KEPT):
        seen.accept(float(number), 0.0)
        seen.sampled(number, float(number), 0)
    assert len(seen._came) == len(seen._chunks) == KEPT
    assert seen.shown(0, 16, 1.0) is None
    assert seen.shown(2 * KEPT - 1, 16, 1.0) == Sight(2 * KEPT - 1, 0.0, 1.0)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_the_size_is_read_from_the_head_alone():
    assert size(jpeg(1, 48, 64)) == (64, 48)
    assert size(jpeg(1, 48, 64)[:200]) in ((64, 48), None)
    for body in (
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n",
        b"\xff\xd8\xff\xe0\x00\x00",
        jpeg(1)[:4] * 9,
        b"\xff\xd8\xff\xda" * 9,
    ):
        assert size(body) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "unsupported_media"),
        (b"no picture", "unsupported_media"),
        (jpeg(1) + bytes(MOST_BYTES), "too_large"),
        (jpeg(1, MOST_PIXELS // 512 + 1, 512), "too_large"),
    ],
    ids=["png", "nothing", "bytes", "pixels"],
)
def test_what_no_stage_is_sent_is_answered_and_the_connection_goes_on(site, body, code):  # noqa: F811
    with pytest.raises(Problem) as caught:
        check(body)
    assert caught.value.type == code
    talk, session = begun(site)
    with talk:
        talk.say({"type": "session.frame", "at": 1, "bytes": len(body)})
        talk.say(body)
        error = talk.until("error")
        assert error["code"] == code and error["message"].startswith("session.frame: ")
        talk.say({"type": "session.frame", "at": 2.5, "bytes": len(jpeg(3))})
        talk.say(jpeg(3))
        talk.say({"type": "session.ping", "t": 1})
        talk.until("session.pong")
    assert session.of("frame") == [[jpeg(3), 2.5]]


def test_pictures_over_the_rate_are_refused(site, monkeypatch):  # noqa: F811
    monkeypatch.setattr(realtime, "Limit", partial(Limit, clock=lambda: 0.0))  # however long they take
    talk, session = begun(site)
    with talk:
        for number in range(int(BURST) + 20):
            talk.say({"type": "session.frame", "at": number, "bytes": len(jpeg(3))})
            talk.say(jpeg(3))
        assert talk.until("error")["code"] == "too_many"
    assert len(session.of("frame")) >= BURST


@pytest.mark.parametrize(
    "said",
    [
        '{"at": "now", "bytes": 9}', '{"at": 1}', '{"at": 1, "bytes": 0}', '{"at": NaN, "bytes": 9}',
        f'{{"at": {LATEST_S}, "bytes": 9}}', f'{{"at": 1, "bytes": {MOST_SOUND + 1}}}', '{"at": 1, "bytes": 9, "x": 1}',
    ],
)  # fmt: skip
def test_what_is_no_announcement_is_not_the_protocol(said):
    with pytest.raises(Problem) as caught:
        message('{"type": "session.frame", ' + said[1:])
    assert caught.value.type == "bad_request"


def test_a_picture_that_is_not_as_long_as_was_said_ends_the_connection(site):  # noqa: F811
    talk, _ = begun(site)
    with talk:
        talk.say({"type": "session.frame", "at": 1, "bytes": 9})
        talk.say(b"8 bytes!")
        found, code = talk.rest()
    assert code == 1008 and "session.frame announced 9 bytes, but 8 bytes came" in found[-1]["message"]
