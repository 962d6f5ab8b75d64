"""A session between its stages and its viewers, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from conf.schema.serve import ServeConfig
from serve.problems import Problem
from serve.session import END_S, KEY_EVERY_S, SPEECH_S, STUCK_S, TURN_S
from serve.tcp_rate import FLOOR
from serve.term import Term
from tests.serve.core_time import REFUSED, Eye, One, settle, virtually


@virtually
async def test_what_stages_send_goes_to_every_viewer_at_once():
    one = One()
    first, second, deaf = Eye(), Eye("vp8"), Eye("")
    for viewer in (first, second, deaf):
        one.session.attach(viewer)
    _, sink = await one.begin()
    assert sink.of("hello") == [{"margin_s": one.serve.margin_s}] and sink.heard[0][0] == "hello"
    assert sink.of("want")[-1] == {"codecs": ["h264", "vp8"], "thin": []}
    await one.show(0)
    await sink.say("video", b"p", codec="h264", key=True, pts=0, chunk=0)
    await sink.say("video", b"q", codec="vp8", key=True, pts=0, chunk=0)
    await sink.say("sound", b"s", pts=0, chunk=0)
    assert [(p.kind, p.codec, p.data) for p in first.packets] == [("video", "h264", b"p"), ("sound", "opus", b"s")]
    assert [p.codec for p in second.packets] == ["vp8", "opus"]
    assert deaf.packets == [] and all(len(eye.chunks) == 1 for eye in (first, second, deaf))
    assert one.session.figures()["fps"] == 0.5  # one picture in two seconds, in two codecs
    one.session.detach(second)
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": []}


@virtually
async def test_words_that_the_model_does_not_know_are_told_of_once():
    one = One()
    one.model.offer = one.model.offer | {"words": ["a", "maze"]}
    await one.begin(prompt="a red maze")
    await one.show(0)
    eye = Eye()
    one.session.attach(eye)
    assert eye.notices == [], "nobody has seen a picture of it"
    for chunk in (1, 2):
        await one.show(chunk)
    one.session.event("a", {"type": "prompt", "prompt": "a blue maze"})
    one.session.event("b", {"type": "prompt", "prompt": "a maze"})
    assert [(n["kind"], n["message"]) for n in eye.notices] == [
        ("words", "maze does not know red"), ("words", "maze does not know blue"),
    ]  # fmt: skip


@virtually
async def test_without_a_viewer_for_a_lease_it_ends_and_one_that_comes_back_keeps_it():
    one = One(lease_s=30)
    await one.begin()
    await one.wait(29)
    eye = Eye()
    one.session.attach(eye)
    await one.wait(120)
    assert one.session.state == "running"
    one.session.detach(eye)
    await one.wait(29)
    one.session.attach(eye)
    one.session.detach(eye)
    one.session.detach(eye)  # a second time means nothing
    await one.wait(29)
    assert one.session.state == "running"
    await one.wait(2)
    assert (one.session.state, one.session.reason) == ("ended", "lease")
    assert one.over == [one.session] and one.session.done.is_set() and one.model.stopped == [0]


@virtually
async def test_one_in_which_nothing_is_done_ends_and_what_is_done_keeps_it():
    one = One(idle_s=60)
    await one.begin()
    one.session.attach(Eye())
    loud, quiet = (b"\x10\x27" * 320, b"\x01\x00" * 320)
    acts = (
        lambda: one.session.event("a", {"type": "action", "action": "forward"}),
        lambda: one.session.sound(loud, 0, None),
        lambda: one.session.speech(quiet),
    )
    for act in acts:
        await one.wait(50)
        act()
    await one.wait(50)
    assert one.session.state == "running"
    one.session.sound(quiet, 320, None)  # a microphone that is merely on
    with pytest.raises(Problem):
        one.session.event("b", {"type": "action", "action": "fly"})
    await one.wait(11)
    assert one.session.reason == "idle"


@virtually
async def test_its_time_has_an_end_of_its_own_and_begins_with_its_place():
    one = One(session_s=1000, idle_s=10_000)
    one.session.limit(100)
    one.session.limit(500)  # never longer again
    one.session.state = "queued"
    one.session.attach(Eye())
    await one.wait(300)
    assert one.session.state == "queued"
    await one.begin()
    assert 99 < one.session.figures()["seconds_left"] <= 100
    await one.wait(99)
    assert one.session.state == "running"
    await one.wait(2)
    assert one.session.reason == "limit"


@virtually
async def test_one_that_waited_long_is_not_idle_when_it_begins():
    one = One(idle_s=60, lease_s=600)
    one.session.state = "queued"
    one.session.attach(Eye())
    await one.wait(300)
    await one.begin()
    await one.wait(50)
    assert one.session.state == "running"


@virtually
async def test_what_does_not_end_when_it_is_told_to_is_cancelled_and_keeps_its_place_until_it_ends(caplog):
    one = One()
    await one.begin()
    eye = Eye()
    one.session.attach(eye)
    one.model.drains = False
    one.session.stop("stopped")
    one.session.stop("limit")  # the first counts
    await one.wait(END_S - 1)
    assert one.session.state == "ending" and one.model.cancelled == [] and eye.closed is None
    await one.wait(2)
    assert one.model.cancelled == [0] and eye.closed == "stopped"
    other = One()
    await other.begin()
    other.model.drains, other.model.cancel = False, lambda number: asyncio.sleep(0)
    other.session.stop("stopped")
    await other.wait(2 * STUCK_S)
    assert other.session.state == "ending" and other.over == []
    assert [record.levelname for record in caplog.records if "does not end" in record.message] == ["ERROR"]
    other.session.ended({})
    assert other.session.state == "ended" and other.over == [other.session]


@virtually
async def test_one_that_is_stopped_while_it_starts_keeps_its_place_and_has_its_time_to_end():
    one = One()
    one.model.hold.clear()
    one.model.drains = False
    beginning = asyncio.ensure_future(one.session.begin({}))
    await settle()
    one.session.stop("stopped")
    await one.wait(3 * END_S)
    assert one.session.state == "starting" and one.over == []
    one.model.hold.set()
    await beginning
    await one.wait(END_S - 1)
    assert one.model.stopped == [0] and one.model.cancelled == []
    await one.wait(2)
    assert one.model.cancelled == [0] and one.over == [one.session]


@virtually
async def test_one_that_is_given_up_while_it_starts_never_begins():
    one = One()
    one.model.hold.clear()
    beginning = asyncio.ensure_future(one.session.begin({}))
    await settle()
    one.session.abandon("failed")
    one.model.hold.set()
    await beginning
    assert one.model.stopped == [0] and one.session.state == "ended" and one.over == [one.session]
    assert one.session.told._trace is None  # one that had begun would be under way for ever


@virtually
async def test_a_viewer_that_cannot_be_closed_keeps_nobody_else_nor_the_place():
    one = One()
    await one.begin()
    broken, eye = Eye(), Eye()
    broken.close = broken.packet = lambda *_: 1 / 0
    for viewer in (broken, eye):
        one.session.attach(viewer)
    one.session.ended({})
    assert eye.closed == "limit" and one.over == [one.session] and one.session.done.is_set()
    worse = One()
    await worse.begin()
    worse.session.told.ended = lambda reason: 1 / 0
    with pytest.raises(ZeroDivisionError):
        worse.session.ended({})
    assert worse.over == [worse.session] and worse.session.done.is_set()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["gone", "nonsense"])
@virtually
async def test_a_stage_that_goes_without_a_word_ends_it_as_failed(which, how):
    one = One()
    stage = (await one.begin())[which]
    if how == "gone":
        stage.close()
        await settle()
    else:
        await stage.say(("sampled", "chunk")[which])
    assert (one.session.state, one.session.reason, one.model.stopped) == ("ended", "failed", [0])


@virtually
async def test_stages_that_say_it_was_all_leave_the_end_to_the_stream():
    one = One()
    for stage in await one.begin():
        stage.leave()
    await settle()
    assert one.session.state == "running"
    one.session.ended({})
    assert one.session.reason == "limit"


@virtually
async def test_told_to_end_while_it_starts_it_ends_once_it_has_started():
    one = One()
    one.model.hold.clear()
    beginning = asyncio.ensure_future(one.session.begin({}))
    await settle()
    one.session.stop("stopped")
    await settle()
    assert one.session.state == "starting" and one.model.stopped == []
    one.model.hold.set()
    await beginning
    assert one.model.stopped == [0] and one.session.state == "ended" and one.session.reason == "stopped"


@virtually
async def test_one_that_cannot_begin_has_ended_and_expects_nobody():
    one = One()
    eye = Eye()
    one.session.attach(eye)
    one.model.refuses = REFUSED
    with pytest.raises(type(REFUSED)):
        await one.session.begin({})
    assert (one.session.state, eye.closed, one.port.expected) == ("ended", "failed", {})
    assert one.over == [one.session]
    with pytest.raises(Problem, match="has ended"):
        one.session.attach(Eye())


@virtually
async def test_the_end_of_its_stream_closes_everything_and_is_told_with_its_hash():
    one = One()
    source, sink = await one.begin()
    eye = Eye()
    one.session.attach(eye)
    one.session.ended({"latents_sha256": "abc"})
    assert eye.closed == "limit" and source.closed and sink.closed
    assert one.session.figures()["latents_sha256"] == "abc"
    failed = One()
    await failed.begin()
    failed.session.ended({"error": {"kind": "x", "line": "no"}})
    failed.session.ended({})
    assert failed.session.reason == "failed" and failed.over == [failed.session]


@virtually
async def test_an_event_comes_back_on_the_chunk_that_shows_it_with_its_latency():
    one = One()
    eye = Eye()
    one.session.attach(eye)
    source, _ = await one.begin()
    one.session.event("a", {"type": "prompt", "prompt": "by day", "more": 1})
    await one.wait(0.25)
    one.session.event("b", {"type": "action", "action": "forward"})
    assert source.of("event") == [
        {"id": "1", "event": {"type": "prompt", "prompt": "by day"}},
        {"id": "2", "event": {"type": "action", "action": "forward"}},
    ]
    await one.source.say("sampled", chunk=0, events=["1", "2"], silence_s=0, held_s=0, late_s=0)
    await one.wait(0.5)
    await one.sink.say("chunk", chunk=0, frames=12, first_frame=0, pts=0, slack_s=0.2)
    await one.show(1)
    first, second = eye.chunks
    assert first.events == ("a", "b") and first.latency_s == pytest.approx(0.75)
    assert second.events == () and second.latency_s is None
    figures = one.session.figures()
    assert figures["latency_s"] == 0.75 and figures["chunks"] == 2 and figures["frames"] == 24
    assert figures["recent"][0]["made_s"] == pytest.approx(0.3) and figures["recent"][0]["events"] == 2


@virtually
async def test_where_a_worlds_camera_is_comes_with_the_chunk_that_leads_there():
    one = One()
    one.session.attach(eye := Eye())
    await one.begin()
    at = [0.5, 0, 1.25, 30.0, -2.0]
    await one.source.say("sampled", chunk=0, events=[], silence_s=0, held_s=0, late_s=0, at=at)
    await one.source.say("sampled", chunk=1, events=[], silence_s=0, held_s=0, late_s=0, at=None)
    await one.show(0)
    await one.show(1)
    assert [shown.told.get("at") for shown in eye.chunks] == [at, None]
    assert "at" not in eye.chunks[1].told


@virtually
async def test_lateness_is_counted_and_told_and_slack_goes_back_to_the_source():
    one = One(margin_s=0.1)
    eye = Eye()
    one.session.attach(eye)
    source, _ = await one.begin()
    for chunk, slack in enumerate((0.3, -0.05, -0.0005)):
        await one.show(chunk, slack_s=slack)
    assert [shown.late_s for shown in eye.chunks] == [0.0, 0.05, 0.0005]
    assert one.session.figures()["late_chunks"] == 1
    assert one.lates == [("maze", 0.0), ("maze", 0.05), ("maze", 0.0005)]
    assert [head["seconds"] for head in source.of("slack")] == pytest.approx([0.2, -0.15, -0.1005])


@virtually
async def test_events_before_the_stage_is_there_are_sent_when_it_comes_the_latest_of_them():
    one = One()
    one.session.state = "queued"
    for number in range(100):
        one.session.event(f"e{number}", {"type": "action", "action": "forward"})
    source, _ = await one.begin()
    assert [head["id"] for head in source.of("event")] == [str(number) for number in range(37, 101)]


@virtually
async def test_what_was_typed_is_kept_while_a_mouse_moves():
    one = One()
    one.session.state = "queued"
    one.session.event("typed", {"type": "prompt", "prompt": "by day"})
    for number in range(100):
        one.session.event(f"e{number}", {"type": "action", "action": "forward"})
    source, _ = await one.begin()
    assert [head["id"] for head in source.of("event")] == ["1", *(str(number) for number in range(39, 102))]


BAD = [
    ("", {"type": "interrupt"}, "bad_request"),
    ("x" * 65, {"type": "interrupt"}, "bad_request"),
    (7, {"type": "interrupt"}, "bad_request"),
    ("a", None, "bad_request"),
    ("a", {"type": ["prompt"]}, "bad_request"),
    ("a", {"type": "dance"}, "bad_request"),
    ("a", {"type": "image"}, "not_while_running"),
    ("a", {"type": "prompt"}, "bad_request"),
    ("a", {"type": "prompt", "prompt": "x" * 2049}, "bad_request"),
    ("a", {"type": "prompt", "prompt": "a\0b"}, "bad_request"),
    ("a", {"type": "prompt", "prompt": "\ud800"}, "bad_request"),
    ("a", {"type": "action"}, "unprocessable"),
    ("a", {"type": "action", "action": ["forward"]}, "unprocessable"),
    ("a", {"type": "action", "action": {"forward": 1}}, "unprocessable"),
]


@pytest.mark.parametrize(("id", "event", "kind"), BAD)
@virtually
async def test_an_event_that_is_none_is_refused_and_goes_nowhere(id, event, kind):
    one = One()
    source, _ = await one.begin()
    with pytest.raises(Problem) as caught:
        one.session.event(id, event)
    assert caught.value.type == kind and source.of("event") == []


@virtually
async def test_an_interrupt_mutes_until_the_chunk_that_was_sampled_after_it():
    one = One()
    eye = Eye()
    one.session.attach(eye)
    _, sink = await one.begin()
    one.session.speech(bytes(32_000))
    one.session.event("i", {"type": "interrupt"})
    assert sink.of("mute") == [{}] and one.session.speech_held_s == 0
    await sink.say("position", seconds=1.23456)
    assert eye.notices == [
        {"type": "session.notice", "kind": "interrupted", "message": "the sound was cut off", "position_s": 1.235}
    ]
    await one.show(4)
    assert sink.of("unmute") == []
    one.session.event("j", {"type": "interrupt"})
    await one.show(5, ["1"])
    assert sink.of("unmute") == []  # another one is under way
    await one.show(6, ["2"])
    assert sink.of("unmute") == [{"chunk": 6}] and len(sink.of("mute")) == 2


@virtually
async def test_interrupts_that_were_never_passed_on_do_not_keep_it_quiet_for_ever():
    """Before its stage is there only the latest events are kept."""
    one = One()
    one.session.state = "queued"
    for number in range(80):
        one.session.event(f"early {number}", {"type": "interrupt"})
    source, sink = await one.begin()
    await one.show(0, [head["id"] for head in source.of("event")])
    one.session.event("now", {"type": "interrupt"})
    await one.show(1, [source.of("event")[-1]["id"]])
    assert sink.of("unmute")[-1] == {"chunk": 1}


@virtually
async def test_speech_is_held_up_to_a_limit_and_the_stage_says_how_much_is_left():
    one = One()
    second = bytes(32_000)
    with pytest.raises(Problem, match="is starting"):
        one.session.speech(second)
    source, _ = await one.begin()
    for number in range(int(SPEECH_S)):
        assert one.session.speech(second) == number + 1
    with pytest.raises(Problem) as caught:
        one.session.speech(second)
    assert caught.value.type == "audio_full" and caught.value.retry_after_s
    await one.show(0, held_s=10.5)
    assert one.session.figures()["audio_held_s"] == 10.5
    assert one.session.speech(second) == 11.5
    assert len(source.of("speech")) == SPEECH_S + 1


@virtually
async def test_a_model_without_ears_is_sent_no_sound():
    one = One()
    one.model.offer["hears"] = False
    source, _ = await one.begin()
    one.session.sound(b"\x10\x27" * 320, 0, None)
    with pytest.raises(Problem, match="takes no sound"):
        one.session.speech(bytes(320))
    assert source.of("sound") == source.of("speech") == []


@virtually
async def test_key_frames_are_asked_for_once_in_half_a_second_and_none_is_forgotten():
    one = One()
    _, sink = await one.begin()
    await one.wait(1)
    before = len(sink.of("key"))
    for _ in range(5):
        one.session.key_frame("loss")
    assert len(sink.of("key")) == before + 1
    await asyncio.sleep(KEY_EVERY_S + 0.01)
    assert len(sink.of("key")) == before + 2
    await asyncio.sleep(KEY_EVERY_S + 0.01)
    assert len(sink.of("key")) == before + 2
    one.session.attach(Eye())
    assert len(sink.of("key")) == before + 3


@virtually
async def test_pictures_follow_the_thinnest_line_and_recover_when_it_leaves():
    one = One()
    _, sink = await one.begin()
    thick, thin, any_ = Eye(), Eye(), Eye()
    for eye in (thick, thin, any_):
        one.session.attach(eye)
    one.session.follow(thick, 900_000)
    one.session.follow(thin, 200_000)
    one.session.follow(thin, 200_000)
    one.session.follow(Eye(), 1)  # a stranger has no say
    rates = [(head["bits_per_second"], head["every"]) for head in sink.of("rate")]
    assert rates == [(None, 1), (900_000, 1), (200_000, 1)]
    assert one.session.bits_per_second == 200_000
    one.session.detach(thin)
    one.session.detach(thick)
    rates = [(head["bits_per_second"], head["every"]) for head in sink.of("rate")][3:]
    assert rates == [(900_000, 1), (None, 1)]


@virtually
async def test_what_viewers_wanted_before_the_stage_came_is_told_when_it_does():
    one = One()
    eye = Eye("vp8")
    one.session.attach(eye)
    one.session.follow(eye, 300_000, 2)
    _, sink = await one.begin()
    assert sink.of("want")[-1] == {"codecs": ["vp8"], "thin": []}
    assert sink.of("rate")[-1] == {"bits_per_second": 300_000, "every": 2, "thin": False}


@virtually
async def test_what_cannot_be_coded_ends_it_as_failed():
    one = One()
    _, sink = await one.begin()
    await sink.say("failed", message="no encoder")
    assert one.session.reason == "failed" and one.model.stopped == [0]


@virtually
async def test_of_several_microphones_one_is_heard_at_a_time_and_the_next_when_it_is_silent():
    one, loud = One(), b"\x10\x27" * 320
    source, _ = await one.begin()
    first, second = Eye(), Eye()
    for eye in (first, second):
        one.session.attach(eye)
    one.session.sound(loud, 0, first)
    one.session.sound(loud, 7, second)
    one.session.sound(loud, 320, first)
    assert [head["at"] for head in source.of("sound")] == [0, 320]
    await one.wait(TURN_S + 0.1)
    one.session.sound(loud, 14, second)
    one.session.sound(loud, 640, first)
    assert [head["at"] for head in source.of("sound")] == [0, 320, 14]
    one.session.detach(second)
    one.session.sound(loud, 960, first)  # whoever has left does not keep the word
    assert source.of("sound")[-1]["at"] == 960


def test_what_is_said_of_an_end_that_is_near_is_true_then():
    now = 0.0
    term = Term(ServeConfig(session_s=100, idle_s=1000), lambda: now)
    assert term.warning(90.0) == (10.0, "the session ends in 10 s: its time will be over")


@virtually
async def test_who_watches_is_told_once_before_its_time_is_over_and_may_prevent_that_it_idles():
    one = One(idle_s=100, session_s=1000)
    await one.begin()
    eye = Eye()
    one.session.attach(eye)
    await one.wait(75)
    (told,) = eye.notices
    assert told["kind"] == "expiring" and 25 <= told["seconds_left"] <= 30
    one.session.event("a", {"type": "action", "action": "forward"})
    await one.wait(75)
    assert [notice["kind"] for notice in eye.notices] == ["expiring"] * 2
    await one.wait(30)
    assert one.session.reason == "idle"


@virtually
async def test_two_people_may_give_their_events_the_same_id():
    one = One()
    eye = Eye()
    one.session.attach(eye)
    source, sink = await one.begin()
    one.session.event("e1", {"type": "interrupt"})
    await one.wait(0.5)
    one.session.event("e1", {"type": "interrupt"})
    first, second = (head["id"] for head in source.of("event"))
    await one.show(0, [first])
    assert sink.of("unmute") == []  # the other one is under way
    await one.wait(0.5)
    await one.show(1, [second])
    assert sink.of("unmute") == [{"chunk": 1}]
    assert [(shown.events, shown.latency_s) for shown in eye.chunks] == [
        (("e1",), pytest.approx(0.5)),
        (("e1",), pytest.approx(0.5)),
    ]


async def pictures(sink, pts: int, key: bool, *encodings: bool) -> None:
    for thin in encodings:
        await sink.say("video", b"", codec="h264", key=key, pts=pts, chunk=0, thin=thin)


@virtually
async def test_a_line_far_thinner_than_the_best_has_an_encoding_of_its_own_and_comes_back():
    one = One()
    _, sink = await one.begin()
    thick, thin = Eye(), Eye()
    for eye in (thick, thin):
        one.session.attach(eye)
    one.session.follow(thick, 280_000)
    await pictures(sink, 0, True, False)
    one.session.follow(thin, 100_000, 2)
    assert sink.of("rate")[-1] == {"bits_per_second": 100_000, "every": 2, "thin": True}
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": ["h264"]}
    assert one.session.bits_per_second == 280_000
    await pictures(sink, 1, False, False)
    await pictures(sink, 2, True, False, True)
    await pictures(sink, 3, False, False, True)
    one.session.follow(thin, 180_000)  # no back and forth between two thresholds
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": ["h264"]}
    one.session.follow(thin, 250_000)
    await pictures(sink, 4, False, False, True)
    await pictures(sink, 5, True, False, True)
    await pictures(sink, 6, False, False, True)
    seen = [[(packet.pts, packet.thin) for packet in eye.packets] for eye in (thick, thin)]
    assert seen[0] == [(pts, False) for pts in range(7)]
    assert seen[1] == [(0, False), (2, True), (3, True), (4, True), (5, False), (6, False)]
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": []}
    assert one.session.bits_per_second == 250_000


@virtually
async def test_when_the_best_line_leaves_the_thin_ones_have_the_pictures_for_themselves():
    one = One()
    _, sink = await one.begin()
    thick, thin = Eye(), Eye()
    for eye in (thick, thin):
        one.session.attach(eye)
    one.session.follow(thin, 100_000)
    await pictures(sink, 0, True, False, True)
    one.session.detach(thick)
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": ["h264"]}
    await pictures(sink, 1, True, False, True)
    assert sink.of("want")[-1] == {"codecs": ["h264"], "thin": []}
    assert [(packet.pts, packet.thin) for packet in thin.packets] == [(0, True), (1, False)]


@virtually
async def test_one_who_takes_nothing_does_not_make_the_pictures_of_others_poorer():
    """Its rate goes down to the floor, and to every second picture; and small pictures are not worth much more."""
    one = One()
    _, sink = await one.begin()
    good, stuck = Eye(), Eye()
    for eye in (good, stuck):
        one.session.attach(eye)
    for rate in ((250_000, 1), (160_000, 1), (FLOOR, 1), (FLOOR, 2)):
        one.session.follow(stuck, *rate)
    assert one.session.bits_per_second is None
    assert [(h["bits_per_second"], h["every"]) for h in sink.of("rate") if not h["thin"]][-1] == (None, 1)
