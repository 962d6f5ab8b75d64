"""A viewer over WebRTC: a real peer in this process, over the loopback address."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RTCP_PSFB_APP, RTCP_PSFB_PLI, RtcpPsfbPacket, pack_remb_fci

from conf.schema.serve import ServeConfig
from serve import webrtc
from serve.media import Shown
from serve.problems import Problem
from tests.serve.browser import Browser, Room, pictures, soon, sound, until


@pytest.fixture(autouse=True)
def loopback_alone(monkeypatch):
    """No address but the one that `serve.taps` adds: as on a machine without a network."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: [])


@pytest.mark.parametrize(("codecs", "codec"), [((), "h264"), (("video/VP8", "video/rtx"), "vp8")])
def test_pictures_and_sound_arrive_as_they_were_coded(codecs, codec):
    async def run():
        room, browser = Room(), Browser(codecs)
        peer = await browser.call(room)
        assert peer.codec == codec
        sent = pictures(codec)
        for packet in sound()[:3] + sent:
            peer.packet(packet)
            await asyncio.sleep(0)
        wrong = pictures("vp8" if codec == "h264" else "h264", 1)
        peer.packet(wrong[0])
        for packet in sound()[3:]:
            peer.packet(packet)
        frames = [await soon(browser.tracks["video"].recv()) for _ in range(len(sent) - 1)]
        heard = [await soon(browser.tracks["audio"].recv()) for _ in range(10)]
        await browser.close()
        await soon(peer.closed.wait())
        return frames, heard, room

    frames, heard, room = asyncio.run(run())
    greys = [frame.to_ndarray(format="gray")[20:40, 20:40].mean() for frame in frames]
    assert all(12 < after - before < 20 for before, after in pairwise(greys))
    assert {after.pts - before.pts for before, after in pairwise(frames)} == {3600}
    assert {frame.samples for frame in heard} == {960}
    assert max(abs(frame.to_ndarray()).max() for frame in heard) > 5000
    assert room.viewers == []


def test_what_a_viewer_asks_of_its_pictures_reaches_the_session():
    async def run():
        room, browser = Room(), Browser()
        peer = await browser.call(room)
        for packet in pictures("h264", 3):
            peer.packet(packet)
        assert room.follows == [(600_000, 1)]
        receiver: RTCRtpReceiver = browser.video.receiver
        (ssrc,) = [t.sender._ssrc for t in peer._connection.getTransceivers() if t.kind == "video"]
        me = browser.video.sender._ssrc
        await receiver._send_rtcp(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=me, media_ssrc=ssrc))
        await until(lambda: "loss" in room.keys)
        for bits_per_second in (1_000, 1_001):
            fci = pack_remb_fci(bits_per_second, [ssrc])
            await receiver._send_rtcp(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=me, media_ssrc=0, fci=fci))
        await until(lambda: len(room.follows) > 1)
        await browser.close()
        await soon(peer.closed.wait())
        return room.follows

    assert asyncio.run(run())[1:] == [(150_000, 1)]


def test_control_channel():
    async def run():
        room, browser = Room(), Browser()
        peer = await browser.call(room)
        browser.say({"type": "session.ping", "t": 5})
        assert await browser.told("session.pong") == {"type": "session.pong", "t": 5}
        browser.say({"type": "session.interaction", "event_id": "e1", "event": {"type": "prompt", "prompt": "rain"}})
        browser.say({"type": "session.interaction", "event_id": "e2", "event": {"type": "image"}})
        error = await browser.told("error")
        assert (error["code"], error["event_id"], error["retryable"]) == ("not_while_running", "e2", False)
        browser.keys.send('{"seq": 1, "held": ["forward"], "event_id": "k1"}')
        browser.keys.send('{"seq": 2, "held": []}')
        await until(lambda: len(room.events) == 3)
        peer.shown(Shown(4, 12, 48, 180_000, ("e1",), 0.4, 0.0))
        told = await browser.told("video.chunk_metadata")
        assert (told["chunk"], told["events"], told["pts_s"], told["latency_s"]) == (4, ["e1"], 2.0, 0.4)
        assert told["audio_held_s"] == 1.5
        browser.say({"type": "session.stop"})
        await until(lambda: room.stops)
        room.state = "ended"
        peer.close("stopped")
        done = await browser.told("session.done")
        assert (done["reason"], done["chunks"]) == ("stopped", 3)
        await soon(peer.closed.wait())
        peer.close("again")
        await browser.close()
        return room

    room = asyncio.run(run())
    assert room.stops == ["stopped"]
    assert [event for _, event in room.events] == [
        {"type": "prompt", "prompt": "rain"},
        {"type": "action", "action": "forward"},
        {"type": "action", "action": "none"},
    ]


def test_notices_kept_until_the_channel_opens_then_figures():
    async def run():
        room, browser = Room(), Browser()
        attach = room.attach

        def greet(viewer):
            attach(viewer)
            viewer.notice({"type": "session.notice", "kind": "draining"})

        room.attach = greet
        peer = await browser.call(room)
        assert (await browser.told("session.notice"))["kind"] == "draining"
        assert (await browser.told("session.figures"))["chunks"] == 3
        await browser.close()
        await soon(peer.closed.wait())

    asyncio.run(run())


class Hands:
    """A clock that goes by hand."""

    now = 100.0

    def __call__(self):
        return self.now


def test_who_says_nothing_is_gone():
    async def run():
        room, browser, clock = Room(), Browser(), Hands()
        peer = await browser.call(room, clock=clock)
        clock.now += webrtc.BEAT_S - 0.5
        browser.say({"type": "session.ping"})
        await browser.told("session.pong")
        clock.now += webrtc.BEAT_S - 0.5
        peer._look()
        assert not room.detached.is_set()
        clock.now += 1
        assert (await browser.told("error"))["code"] == "timeout", "the session goes on: it has no end to be told of"
        await soon(peer.closed.wait())
        assert room.detached.is_set()
        await browser.close()

    asyncio.run(run())


@pytest.mark.parametrize("end", ["nobody connects", "the session ends"])
def test_who_never_connects_is_let_go(end):
    async def run():
        room, browser, clock = Room(), Browser(), Hands()
        await webrtc.answer(room, await browser.offer(), ServeConfig(), clock)
        if end == "nobody connects":
            clock.now += webrtc.CONNECT_S + 1
        else:
            room.state, room.reason = "ended", "drained"
        await browser.close()
        await until(lambda: len(asyncio.all_tasks()) == 1 and not webrtc._ending)
        assert not room.attached.is_set()

    asyncio.run(run())


def test_a_session_that_has_ended_takes_nobody():
    async def run():
        room, browser = Room(), Browser()
        room.state = "ended"
        with pytest.raises(Problem) as problem:
            await webrtc.answer(room, await browser.offer(), ServeConfig())
        await browser.close()
        return problem.value.status

    assert asyncio.run(run()) == 410


@pytest.mark.parametrize("hears", [True, False])
def test_sound_is_what_the_model_has(hears):
    async def run():
        room, browser = Room(hears), Browser()
        peer = await browser.call(room)
        for packet in sound():
            peer.packet(packet)
        (section,) = [t for t in browser.connection.getTransceivers() if t.kind == "audio"]
        await browser.close()
        await soon(peer.closed.wait())
        return section.currentDirection

    assert asyncio.run(run()) == ("recvonly" if hears else "inactive")


def test_hostile_messages_and_packets_harm_nobody(caplog):
    async def run():
        room, browser = Room(), Browser()
        peer = await browser.call(room, clock=Hands())  # however long they take
        for text in ("{", "[]", "9" * 20000, b"\0", '{"type": 1}', "[" * 15000, '{"type": "session.interaction"}'):
            browser.say(text)
        codes = [(await browser.told("error"))["code"] for _ in range(7)]
        for _ in range(webrtc.FLOOD_PER_SECOND + 20):
            browser.say({"type": "session.ping"})
        error = await browser.told("error")
        assert (error["code"], error["retryable"]) == ("too_many", True)
        await soon(peer.closed.wait())
        await browser.close()

        room, browser = Room(), Browser()
        peer = await browser.call(room)
        data = browser.connection.sctp  # a name that is no text, which the library would stumble over
        await data._send(6, 50, bytes([3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]) + b"\xff\xff")
        await soon(peer.closed.wait())
        await browser.close()
        return codes

    codes = asyncio.run(run())
    assert codes == ["bad_request"] * 2 + ["too_large"] + ["bad_request"] * 4
    assert not [record for record in caplog.records if record.exc_info]


def test_nothing_is_left_of_calls():
    """Tasks, sockets and threads are as before, whichever side ends the call."""

    async def call(index):
        room, browser = Room(), Browser(data=index % 3 > 0)
        peer = await browser.call(room)
        for packet in pictures("h264", 2):
            peer.packet(packet)
        if index % 2:
            peer.close("stopped")
            await soon(peer.closed.wait())
        await browser.close()
        await soon(peer.closed.wait())

    def held():
        """What a call could leave, each by what it is: others of this process may end meanwhile."""
        open_files = {fd.resolve() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
        return asyncio.all_tasks() | set(threading.enumerate()) | open_files

    async def run():
        await call(0)
        before = held()
        for index in range(20):
            await call(index)
        await until(lambda: held() <= before)

    asyncio.run(run())


def test_who_says_too_much_is_shown_out_and_told_so():
    async def run():
        room, browser = Room(), Browser()
        peer = await browser.call(room, clock=Hands())
        for seq in range(3 * webrtc.FLOOD_PER_SECOND):
            browser.keys.send(f'{{"seq": {seq}, "held": []}}')
        error = await browser.told("error")
        assert error["code"] == "too_many"
        await soon(peer.closed.wait())
        assert room.state == "running"
        await browser.close()

    asyncio.run(run())
