"""One who does not take what is sent: bounded, skipped ahead, slowed down, and caught up; on a virtual clock."""

import asyncio
import io
import json
import socket
from itertools import pairwise

import av
import pytest

from serve.bitrate import FLOOR_BPS
from serve.fragments import Fragments
from serve.heard import AHEAD, PAUSE, RATE, TimeLine
from serve.media import VIDEO_RATE
from serve.outbox import LONGEST_S, MOST, WORDS, Outbox
from serve.socket import Socket
from serve.tcp_rate import FLOOR, LAG_S, TcpRate, Wish
from serve.tight import UNSENT, tighten
from stages.sinks.coded import LEAST_BITS
from tests.serve.realtime_packets import FPS, both, due, pictures
from tests.serve.realtime_server import FakeSession


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(outbox: Outbox, stuck: bool = False) -> list:
    """All that waits, as it is sent; `stuck`: the last of it is still under way."""

    async def run():
        found = [await outbox.take() for _ in range(len(outbox._items))]
        if not stuck:
            sender = asyncio.create_task(outbox.take())
            await asyncio.sleep(0)
            sender.cancel()
        return found

    return asyncio.run(run())


def media(items) -> bytes:
    return b"".join(item.data for item in items if isinstance(item.data, bytes))


def times(data: bytes) -> list[float]:
    with av.open(io.BytesIO(data), format="mp4") as file:
        return [float(frame.time) for frame in file.decode(video=0)]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def session():
    return FakeSession(1)


def test_who_stops_taking_is_skipped_to_the_next_key_frame_with_the_right_times(clock, session):
    watcher = Socket(session, True, clock)
    begin, sent = clock.now, []
    for packet in both(5.0, keys=(0, 70)):  # the key frame that is asked for comes at 3.5 s
        clock.now = begin + due(packet)
        if due(packet) < 1 or due(packet) >= 3:
            sent += taken(watcher.outbox)
        watcher.packet(packet)
        assert watcher.outbox.lag_s <= LONGEST_S + 0.3
    sent += taken(watcher.outbox)
    found = times(media(sent))
    assert ["queue"] in session.of("key_frame")
    assert [at for at in found if at >= 3.5] == pytest.approx([3.5 + i / FPS for i in range(30)], abs=1e-4)
    assert not any(at for at in found if 2.2 < at < 3.5)
    assert [at for at in found if at < 0.9] == pytest.approx([i / FPS for i in range(18)], abs=1e-4)


def test_pictures_before_a_key_frame_ask_for_one(clock, session):
    watcher = Socket(session, True, clock)
    for packet in pictures(8)[1:4]:
        watcher.packet(packet)
    assert session.of("key_frame") == [["join"]] * 3
    assert not media(taken(watcher.outbox))


def test_no_key_frame_is_asked_for_while_nothing_is_taken(clock, session):
    watcher = Socket(session, True, clock)
    begin = clock.now
    packets = both(4.0)
    for packet in packets:
        clock.now = begin + due(packet)
        if due(packet) < 0.5:
            taken(watcher.outbox, stuck=due(packet) >= 0.3)
        watcher.packet(packet)
    assert not session.of("key_frame") and watcher.outbox.lag_s > 3
    taken(watcher.outbox)
    watcher.packet(packets[-1]._replace(pts=4 * VIDEO_RATE, kind="video", codec="h264", key=False))
    assert session.of("key_frame") == [["queue"]]


def test_a_slow_line_lowers_the_rate_and_a_good_one_gets_it_back(clock, session):
    watcher = Socket(session, True, clock)
    begin = clock.now
    packets = both(9.0, keys=tuple(range(0, 180, 10)))
    for packet in packets:
        clock.now = begin + due(packet)
        if not 1 <= due(packet) < 1.8:
            taken(watcher.outbox)
        watcher.packet(packet)
    asked = session.of("follow")
    assert asked[0][0] >= FLOOR and asked[-1] == [None, 1]


def test_a_message_is_never_thrown_away_nor_the_beginning(clock):
    async def run():
        outbox = Outbox(clock)
        outbox.begin(b"init")
        outbox.play(b"old")
        outbox.say({"type": "session.notice", "kind": "held"})
        clock.now += LONGEST_S + 0.1
        assert outbox.over
        outbox.empty()
        assert not outbox.over and outbox.lag_s == 0
        return [(await outbox.take()).data for _ in range(2)]

    first, second = asyncio.run(run())
    assert first == b"init" and json.loads(second)["kind"] == "held"


def test_only_the_latest_figures_wait(clock):
    outbox = Outbox(clock)
    for n in range(5):
        outbox.say({"type": "session.figures", "n": n})
    (item,) = taken(outbox)
    assert json.loads(item.data)["n"] == 4


def test_bytes_are_bounded_too_and_so_are_words(clock):
    outbox = Outbox(clock)
    outbox.play(bytes(MOST))
    assert not outbox.over
    outbox.play(b"1")
    assert outbox.over
    outbox.say({"type": "error", "message": "x" * WORDS})
    with pytest.raises(TimeoutError):
        asyncio.run(outbox.take())


def test_what_is_being_sent_counts_as_waiting(clock):
    outbox = Outbox(clock)
    outbox.play(b"1")
    taken(outbox, stuck=True)
    clock.now += 0.5
    assert outbox.lag_s == pytest.approx(0.5)


def test_after_the_end_nothing_is_taken(clock):
    outbox = Outbox(clock)
    outbox.end(1000)
    outbox.play(b"1")
    outbox.say({"type": "session.figures"})
    (item,) = taken(outbox)
    assert (item.kind, item.code) == ("end", 1000)


def rates(lags, size=20_000, step=0.1) -> list[Wish]:
    """What is asked, for lags a tenth of a second apart, of one who is given 200 kB/s."""
    rate, found = TcpRate(), []
    for i, lag in enumerate(lags):
        rate.given(i * step, size)
        found.append(rate.look(i * step, lag))
    return [r for r in found if r]


def test_a_line_that_keeps_up_is_left_alone():
    assert rates([0.0] * 50) == []
    assert rates([LAG_S] * 50) == []


def test_a_lagging_line_gets_less_step_by_step_down_to_the_floor():
    asked = rates([0.0] * 10 + [1.0] * 120)
    limits = [rate.bits_per_second for rate in asked]
    assert limits[0] == pytest.approx(0.7 * 1_600_000, rel=0.15)
    assert all(b < a for a, b in pairwise(limits) if b > FLOOR)
    assert limits[-1] == FLOOR == FLOOR_BPS == LEAST_BITS and asked[-1].every == 2
    assert [rate.every for rate in asked[:-1]] == [1] * (len(asked) - 1)


def test_a_line_that_is_well_again_rises_by_8_percent_a_second_and_is_freed():
    asked = rates([0.0] * 10 + [0.5] + [0.0] * 100)
    limits = [rate.bits_per_second for rate in asked]
    assert limits[-1] is None
    assert len(limits) > 5 and all(a < b for a, b in pairwise(limits[:-1]))
    assert limits[1] == pytest.approx(limits[0] * 1.08**0.6, rel=0.02)


def test_a_microphone_s_pieces_follow_each_other():
    line = TimeLine()
    assert [line.place(320, 5 + i * 0.02 + (i % 3) * 0.004) for i in range(50)] == [i * 320 for i in range(50)]


def test_a_pause_of_a_microphone_is_one():
    line = TimeLine()
    line.place(320, 10.0)
    at = line.place(320, 12.0)
    assert at == pytest.approx(2 * RATE, abs=1)
    assert line.place(320, 12.02) == at + 320


def test_sound_that_was_held_up_does_not_stay_behind():
    line = TimeLine()
    for i in range(50):
        line.place(320, i * 0.02)
    burst = [line.place(320, 3.0) for _ in range(100)]  # 2 s of it, all at once
    kept = [at for at in burst if at is not None]
    assert burst[-1] is None
    assert len(kept) * 320 <= AHEAD + 640
    later = [line.place(320, 3.02 + i * 0.02) for i in range(50)]
    lateness = [at + 320 - (3.02 + i * 0.02) * RATE for i, at in enumerate(later) if at is not None]
    assert len(lateness) >= 49 and max(map(abs, lateness)) <= AHEAD + PAUSE / 10


def test_a_chunk_that_is_shown_before_the_first_picture_is_told_behind_it(clock, session):
    watcher = Socket(session, True, clock)
    session.viewers.append(watcher)
    session.play(pictures(10)[1:4], events=("e1",))
    assert not any(item.kind == "video.chunk_metadata" for item in taken(watcher.outbox))
    session.play([p._replace(pts=p.pts + VIDEO_RATE) for p in pictures(3)], events=("e2",))
    items = taken(watcher.outbox)
    kinds = [item.kind for item in items]
    assert kinds[:4] == ["video.start", "init", "video.chunk_metadata", "video.chunk_metadata"]
    first, second = (json.loads(item.data) for item in items[2:4])
    assert (first["events"], second["events"], second["pts_s"]) == (["e1"], ["e2"], 0)
    assert first["pts_s"] < 0


def test_another_encoder_s_beginning_is_not_thrown_away(clock, session):
    watcher = Socket(session, True, clock)
    for packet in [*pictures(5), *(p._replace(pts=p.pts + VIDEO_RATE) for p in pictures(5, width=96))]:
        watcher.packet(packet)
    watcher.outbox.empty()
    assert [item.kind for item in taken(watcher.outbox)].count("init") == 2
    assert isinstance(watcher._fragments, Fragments)


def test_what_is_not_taken_waits_where_it_can_be_thrown_away():
    async def run():
        listener = socket.create_server(("127.0.0.1", 0))
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, here)
        tighten(transport)
        found = transport.get_write_buffer_limits()[1], here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        transport.abort()
        there.close(), listener.close()
        return found

    assert asyncio.run(run()) == (UNSENT, UNSENT)


@pytest.mark.parametrize(("state", "types"), [("running", ["error"]), ("ended", ["session.done"])])
def test_the_sessions_end_is_told_where_it_has_ended(clock, state, types):
    session = FakeSession("one", clock)
    session.state = state
    viewer = Socket(session, True, clock)
    viewer.close("failed")
    assert [json.loads(item.data)["type"] for item in taken(viewer.outbox) if item.data] == types
