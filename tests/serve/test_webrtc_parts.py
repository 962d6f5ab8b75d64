"""The parts of a WebRTC viewer that need no connection: its bit rate, its track, its words."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiortc.mediastreams import MediaStreamError

from conf.schema.serve import ServeConfig
from serve import taps
from serve.asked import checked
from serve.bitrate import FLOOR_BPS, GROWTH, HEAVY_LOSS, SHARE, START_BPS, UNKNOWN_BPS, Rate
from serve.channels import BURST, Control, Keys
from serve.ice import ice_servers
from serve.media import Packet
from serve.tracks import CodedTrack
from tests.serve.browser import Room


class Hands:
    """A clock that goes by hand."""

    now = 10.0

    def __call__(self):
        return self.now


def second(rate: Rate, clock: Hands, sent: float, estimate: float | None = None, lost: float | None = None) -> int:
    """A second in which `sent` bits leave, and what is reported at its end."""
    for _ in range(25):
        clock.now += 0.04
        rate.sent(round(sent / 25 / 8))
    if estimate is not None:
        rate.estimate(estimate)
    if lost is not None:
        rate.lost(lost)
    return rate.bits_per_second


def test_bit_rate_follows_the_estimate_down_at_once_and_up_slowly():
    clock = Hands()
    rate = Rate(clock)
    assert (rate.bits_per_second, rate.every) == (START_BPS, 1)
    assert second(rate, clock, 600_000, 500_000) == 500_000 * SHARE
    low = rate.bits_per_second
    assert second(rate, clock, low, 10_000_000) == pytest.approx(low * GROWTH)
    before = rate.bits_per_second
    rate.estimate(10_000_000)
    assert rate.bits_per_second == before, "growth is by time, not by report"
    clock.now += 3600
    rate.estimate(10_000_000)
    assert rate.bits_per_second <= before * GROWTH + 1, "nor by what was not tried"


def test_bit_rate_below_the_floor_halves_the_frames_and_recovers():
    clock = Hands()
    rate = Rate(clock)
    assert second(rate, clock, 600_000, 100_000) == FLOOR_BPS
    assert rate.every == 1, "a browser that was busy says so once"
    second(rate, clock, 150_000, 150_000)
    for _ in range(3):
        second(rate, clock, 150_000, 100_000)
    assert (rate.bits_per_second, rate.every) == (FLOOR_BPS, 2)
    everies = []
    for _ in range(30):
        second(rate, clock, rate.bits_per_second / rate.every, 5_000_000)
        everies.append(rate.every)
    assert rate.every == 1
    assert everies == sorted(everies, reverse=True), "it does not flutter"
    assert rate.bits_per_second > FLOOR_BPS


def test_a_still_picture_does_not_talk_the_bit_rate_down():
    """A browser's estimate begins at what arrives, and rises to about 1.5 times that, however wide the line is."""
    clock = Hands()
    rate = Rate(clock)
    for step in range(60):
        second(rate, clock, 60_000, 60_000 * min(0.95 * 1.01**step, 1.5))
        assert (rate.bits_per_second, rate.every) == (START_BPS, 1)
    second(rate, clock, 600_000, 300_000)
    assert second(rate, clock, 600_000, 300_000) == round(300_000 * SHARE), "but a jam is seen"


def test_bit_rate_on_a_narrow_line_stays_within_it():
    """A line of 400 kbit/s, 70 of them sound: what arrives is estimated, or 0.85 of it while more is sent."""
    clock, line, estimate = Hands(), 330_000, 330_000
    rate, over = Rate(clock), 0
    for _ in range(120):
        sent = rate.bits_per_second / rate.every
        over += sent > line
        estimate = 0.85 * line if sent > line else min(1.08 * estimate, 1.5 * sent + 10_000)
        second(rate, clock, sent, estimate)
    assert over < 30
    assert rate.bits_per_second > FLOOR_BPS


def test_single_losses_of_small_pictures_do_not_lower_the_bit_rate():
    """Two of a hundred packets are lost. Between reports there are four: now and then it is a quarter of them."""
    clock = Hands()
    rate = Rate(clock)
    for number in range(400):
        clock.now += 0.25
        rate.sent(10_000)
        rate.lost(0.25 if number % 12 == 5 else 0.0)
        assert (rate.bits_per_second >= START_BPS, rate.every) == (True, 1)


def test_losses_lower_the_bit_rate():
    clock = Hands()
    rate = Rate(clock)
    assert second(rate, clock, 600_000, lost=HEAVY_LOSS) == START_BPS
    for _ in range(4):
        second(rate, clock, 600_000, lost=0.4)
    assert START_BPS * 0.8**4 < rate.bits_per_second < START_BPS
    for _ in range(100):
        second(rate, clock, 600_000, lost=1.0)
    assert (rate.bits_per_second, rate.every) == (FLOOR_BPS, 2)
    for _ in range(100):
        second(rate, clock, 600_000, lost=0.0)
    assert (rate.bits_per_second, rate.every) == (UNKNOWN_BPS, 1), "as far as is dared without an estimate"


def picture(frame: int, key: bool = False) -> Packet:
    return Packet("video", "h264", bytes([frame % 256]), frame * 3600, key, 0)


def track_of(kind: str = "video"):
    emptied = []
    return CodedTrack(kind, lambda: emptied.append(1)), emptied


def test_a_track_begins_with_a_key_frame_and_keeps_times():
    async def run():
        track, emptied = track_of()
        track.put(picture(5))
        waiting = asyncio.ensure_future(track.recv())
        await asyncio.sleep(0)
        assert not waiting.done()
        track.put(picture(6, key=True))
        track.put(picture(7))
        found = [await waiting, await track.recv()]
        assert not emptied
        return [(packet.pts, packet.time_base.denominator, bytes(packet)) for packet in found]

    assert asyncio.run(run()) == [(6 * 3600, 90000, b"\6"), (7 * 3600, 90000, b"\7")]


def test_a_track_that_is_not_read_is_emptied_after_a_second():
    async def run():
        track, emptied = track_of()
        for frame in range(100):
            track.put(picture(frame, key=frame == 0))
        assert len(emptied) == 3, "and a key frame is asked for again while none comes"
        track.put(picture(100, key=True))
        track.put(picture(101))
        found = [(await track.recv()).pts // 3600 for _ in range(2)]
        assert track.dropped == 100
        track.stop()
        with pytest.raises(MediaStreamError):
            await track.recv()
        return found

    assert asyncio.run(run()) == [100, 101]


def test_sound_that_is_not_read_is_emptied_and_goes_on():
    async def run():
        track, _ = track_of("audio")
        for index in range(100):
            track.put(Packet("sound", "opus", b"x", index * 960, True, 0))
        first = (await track.recv()).pts
        return first, track.dropped

    first, dropped = asyncio.run(run())
    assert first == dropped * 960
    assert dropped > 40


def test_stopping_a_track_wakes_who_waits():
    async def run():
        track, _ = track_of()
        waiting = asyncio.ensure_future(track.recv())
        await asyncio.sleep(0)
        track.stop()
        with pytest.raises(MediaStreamError):
            await waiting

    asyncio.run(run())


def keys_of(actions=("none", "forward", "back", "left")):
    room, said = Room(False, actions), []
    return Keys(room, said.append), room, said


def test_keys_are_full_state_and_the_newest_wins():
    keys, room, said = keys_of()
    for seq, held in [
        (1, ["forward"]),
        (1, ["back"]),
        (3, ["forward", "left"]),
        (2, []),
        (4, ["forward", "left"]),
        (5, ["left"]),
        (6, ["left", "forward"]),
        (7, ["left"]),
        (9, []),
        (8, ["left"]),
        (10, []),
    ]:
        keys.take(json.dumps({"seq": seq, "held": held, "event_id": f"k{seq}"}))
    assert [(id, event["action"]) for id, event in room.events] == [
        ("k1", "forward"),
        ("k3", "left"),
        ("k6", "forward"),
        ("k7", "left"),
        ("k9", "none"),
    ]
    assert {event["type"] for _, event in room.events} == {"action"}
    assert not said


def test_no_key_is_the_model_s_first_action():
    keys, room, said = keys_of(("stand", "go"))
    for seq, held in enumerate(([], ["go"], [], ["none"])):
        keys.take(json.dumps({"seq": seq, "held": held}))
    assert [event["action"] for _, event in room.events] == ["go", "stand", "none"]
    keys, room, _ = keys_of(())
    keys.take('{"seq": 1, "held": []}')
    assert not said and not room.events, "a model without actions is not told of one"


MANY = {"keys": ["forward", "left", "jump"], "one": False, "axes": ["pitch", "yaw"]}


def test_of_keys_that_may_be_held_together_all_count_and_what_turns_too():
    room, said = Room(), []
    room.served.offer["controls"] = MANY
    keys = Keys(room, said.append)
    for seq, held, mouse in [
        (1, [], [0, 0]),
        (2, ["left", "forward"], None),
        (3, ["forward", "left"], [0.0, 0.0]),
        (5, ["forward", "left"], [0.0, 0.5]),
        (4, ["forward"], [1, 1]),
        (6, ["forward", "forward"], [0.0, 0.5]),
        (7, [], [0.0, 0.5]),
        (8, [], None),
    ]:
        keys.take(json.dumps({"seq": seq, "held": held, "mouse": mouse}))
    assert room.events == [
        ("keys-2", {"type": "action", "keys": ["forward", "left"]}),
        ("keys-5", {"type": "action", "keys": ["forward", "left"], "mouse": [0.0, 0.5]}),
        ("keys-6", {"type": "action", "keys": ["forward"], "mouse": [0.0, 0.5]}),
        ("keys-7", {"type": "action", "keys": [], "mouse": [0.0, 0.5]}),
        ("keys-8", {"type": "action", "keys": []}),
    ]
    assert not said and [checked(id, event, room.served.offer) for id, event in room.events]


@pytest.mark.parametrize(
    "message",
    [
        {"held": []},
        {"seq": True, "held": []},
        {"seq": -1, "held": []},
        {"seq": 1.5, "held": []},
        {"seq": 2**60, "held": []},
        {"seq": 1},
        {"seq": 1, "held": "forward"},
        {"seq": 1, "held": [1]},
        {"seq": 1, "held": [""]},
        {"seq": 1, "held": ["x" * 65]},
        {"seq": 1, "held": ["x"] * 17},
        {"seq": 1, "held": [], "event_id": 5},
        {"seq": 1, "held": [], "hold": []},
        {"seq": 1, "held": [], "mouse": 0.5},
        {"seq": 1, "held": [], "mouse": ["a"]},
        [],
        3,
    ],
)
def test_keys_that_are_refused(message):
    keys, room, said = keys_of()
    keys.take(json.dumps(message))
    assert [found["code"] for found in said] == ["bad_request"]
    assert not room.events
    keys.take('{"seq": 0, "held": ["forward"]}')
    assert room.events == [("keys-0", {"type": "action", "action": "forward"})]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"type": "session.interaction", "event_id": 5, "event": {}}', "bad_request"),
        ('{"type": "session.interaction", "event_id": "a", "event": []}', "bad_request"),
        ('{"type": "session.interaction", "event_id": "a", "event": {}, "more": 1}', "bad_request"),
        ('{"type": "session.start"}', "bad_request"),
        ('{"type": "session.audio", "sample_rate": 16000, "channels": 1, "bytes": 2}', "bad_request"),
        (b"{}", "bad_request"),
        ('{"type": ["session.stop"]}', "bad_request"),
        ('{"type": "session.ping", "t": NaN}', "bad_request"),
        ('{"x": "%s"}' % ("é" * 9000), "too_large"),
    ],
)
def test_words_that_are_refused(text, code):
    said, room = [], Room()
    Control(room, said.append, Hands()).take(text)
    assert [message["code"] for message in said] == [code]
    assert not room.events
    assert not room.stops


def test_twenty_words_a_second_are_listened_to_and_some_more_at_once():
    said, room, clock = [], Room(), Hands()
    control = Control(room, said.append, clock)
    for _ in range(50):
        control.take('{"type": "session.interaction", "event_id": "a", "event": {"type": "prompt"}}')
    assert len(room.events) == BURST
    assert {(message["code"], message["event_id"]) for message in said} == {("too_many", "a")}
    clock.now += 0.5
    for _ in range(50):
        control.take('{"type": "session.interaction", "event_id": "a", "event": {"type": "prompt"}}')
    assert len(room.events) == BURST + 10


def test_servers_that_the_library_cannot_read_are_left_out():
    serve = ServeConfig(ice_servers=["stun:a.example", "stun:[::1]:5", "turn:b.example?transport=tcp"], turn_secret="s")
    found = taps.servers(ice_servers(serve))
    assert [server.urls for server in found] == ["stun:a.example", "turn:b.example?transport=tcp"]
    assert [bool(server.credential) for server in found] == [False, True]
    assert taps.servers(ice_servers(ServeConfig())) == []
