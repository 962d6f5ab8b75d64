"""The WebSocket against a client that knows the protocol, and many that do not."""

import asyncio
import io
import json
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from serve import realtime as endpoint
from serve.guard import OWN
from serve.incoming import message
from serve.problems import Problem
from tests.patience import PATIENT_S
from tests.serve.realtime_packets import CHUNK, FPS, both
from tests.serve.realtime_server import OFFER, FakeGateway, FakeSession, serving


@pytest.fixture(scope="module")
def running():
    with serving() as site:
        yield site


@pytest.fixture
def site(running):
    running.gateway = FakeGateway()
    return running


class Talk:
    """A connection that says what it likes."""

    def __init__(self, site, **options):
        self._stack = ExitStack()
        options = {"compression": None, "proxy": None, "max_size": None, "max_queue": None} | options
        opened = connect(site.address, **options)
        self._socket = self._stack.enter_context(opened)
        self.protocol = self._socket.subprotocol

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def say(self, said) -> None:
        self._socket.send(json.dumps(said) if isinstance(said, dict) else said)

    def hear(self):
        got = self._socket.recv(timeout=PATIENT_S)
        return got if isinstance(got, bytes) else json.loads(got)

    def until(self, kind: str) -> dict:
        while True:
            got = self.hear()
            if isinstance(got, dict) and got["type"] == kind:
                return got

    def rest(self) -> tuple[list, int]:
        """All that still comes, and the code of the close."""
        found = []
        try:
            while True:
                found.append(self.hear())
        except ConnectionClosed as error:
            return found, error.rcvd.code if error.rcvd else 1006


def begun(site, session=None, **options) -> tuple[Talk, FakeSession]:
    """A connection with its session, which plays nothing of itself."""
    session = session or FakeSession(1)
    site.gateway.next = lambda wanted: session
    talk = Talk(site, **options)
    talk.say({"type": "session.start"})
    talk.until("session.started")
    return talk, session


@pytest.mark.parametrize("said", [{}, {"prompt": "x"}, {"session": "b", "secret": "t"}])
def test_who_was_let_in_for_a_session_joins_that_one_alone(said):
    sessions = {id: SimpleNamespace(id=id, secret=secret, state="running") for id, secret in (("a", "s"), ("b", "t"))}
    gateway = SimpleNamespace(session=sessions.get, create=None)
    socket = SimpleNamespace(scope={OWN: "a"}, client=None)
    own = message(json.dumps({"type": "session.start", "session": "a", "secret": "s"}))
    assert asyncio.run(endpoint._session(own, socket, gateway)).id == "a"
    with pytest.raises(Problem) as caught:
        asyncio.run(endpoint._session(message(json.dumps({"type": "session.start", **said})), socket, gateway))
    assert caught.value.type == "unauthorized"


def test_a_session_from_its_start_to_its_end(site):
    with Talk(site, subprotocols=["everframe.token.abc", "everframe.v1"]) as talk:
        talk.say({"type": "session.start", "prompt": "a maze", "seed": 3})
        found, code = talk.rest()
        assert talk.protocol == "everframe.v1"
    assert code == 1000
    assert site.gateway.wanted == [{"prompt": "a maze", "seed": 3}]
    words = [m["type"] for m in found if isinstance(m, dict) and m["type"] != "session.figures"]
    assert words == ["session.started", "video.start", *["video.chunk_metadata"] * 3, "session.done"]
    done = found[-1]
    assert done == {"type": "session.done", "reason": "stopped", "chunks": 3, "frames": 24}
    data = [m for m in found if isinstance(m, bytes)]
    assert data[0][4:8] == b"ftyp" and all(piece[4:8] == b"moof" for piece in data[1:])
    with av.open(io.BytesIO(b"".join(data)), format="mp4") as file:
        assert len(list(file.decode(video=0))) == 24


def test_what_is_known_of_a_chunk_comes_right_before_it(site):
    with Talk(site) as talk:
        talk.say({"type": "session.start"})
        found, _ = talk.rest()
    init = next(m for m in found if isinstance(m, bytes))
    assert found[found.index(init) - 1]["type"] == "video.start"
    at = {m["chunk"]: i for i, m in enumerate(found) if isinstance(m, dict) and m["type"] == "video.chunk_metadata"}
    for chunk, i in at.items():
        before = b"".join(m for m in found[:i] if isinstance(m, bytes))
        with av.open(io.BytesIO(before), format="mp4") as file:
            count = sum(1 for _ in file.decode(video=0)) if chunk else 0
        assert count == chunk * CHUNK
        assert found[i]["pts_s"] == pytest.approx(chunk * CHUNK / FPS)
        assert isinstance(found[i + 1], bytes)


FIRST = {
    "no JSON": ("{", "bad_request", 1008),
    "a list": ("[]", "bad_request", 1008),
    "binary": (b"\0\1", "bad_request", 1008),
    "another message": ({"type": "session.stop"}, "bad_request", 1008),
    "unknown type": ({"type": "session.go"}, "bad_request", 1008),
    "type is a list": ({"type": ["session.start"]}, "bad_request", 1008),
    "unknown key": ({"type": "session.start", "sed": 1}, "bad_request", 1008),
    "wrong type": ({"type": "session.start", "seed": "1"}, "bad_request", 1008),
    "number too large": ('{"type": "session.start", "seed": ' + "9" * 5000 + "}", "bad_request", 1008),
    "not a number": ('{"type": "session.start", "seconds": NaN}', "bad_request", 1008),
    "half a character": ('{"type": "session.start", "prompt": "\\ud800"}', "bad_request", 1008),
    "too deep": ("[" * 16000, "bad_request", 1008),
    "too long": ({"type": "session.start", "image": "x" * 20000}, "too_large", 1009),
    "prompt too long": ({"type": "session.start", "prompt": "é" * 1500}, "bad_request", 1008),
    "half a name": ({"type": "session.start", "session": "session-1"}, "bad_request", 1008),
    "both": ({"type": "session.start", "session": "a", "secret": "b", "seed": 1}, "bad_request", 1008),
    "no session": ({"type": "session.start", "session": "none", "secret": "b"}, "not_found", 1008),
    "wrong secret": ({"type": "session.start", "session": "session-1", "secret": "é"}, "unauthorized", 1008),
    "ended": ({"type": "session.start", "session": "session-2", "secret": "secret-2"}, "ended", 1008),
}


@pytest.mark.parametrize("case", FIRST)
def test_what_is_no_beginning_is_refused(site, case):
    said, problem, code = FIRST[case]
    site.gateway.sessions = {"session-1": FakeSession(1), "session-2": FakeSession(2)}
    site.gateway.sessions["session-2"].stop("idle")
    with Talk(site) as talk:
        talk.say(said)
        found, closed = talk.rest()
    (error,) = found
    assert (error["type"], error["code"], closed) == ("error", problem, code)
    assert "\n" not in error["message"]
    assert not site.gateway.wanted and not site.gateway.sessions["session-1"].came.is_set()


@pytest.mark.parametrize(
    ("problem", "code"), [("full", 1013), ("draining", 1001), ("too_many", 1013), ("failed", 1011)]
)
def test_a_server_that_cannot_says_so(site, problem, code):
    def refuse(wanted):
        raise Problem(problem, "not now", 12)

    site.gateway.next = refuse
    with Talk(site) as talk:
        talk.say({"type": "session.start"})
        (error,), closed = talk.rest()
    assert (error["code"], error["retry_after_s"], closed) == (problem, 12, code)


def test_a_server_s_own_mistake_is_no_silence(site, caplog):
    site.gateway.next = lambda wanted: 1 / 0
    with Talk(site) as talk:
        talk.say({"type": "session.start"})
        (error,), closed = talk.rest()
    assert (error["code"], closed) == ("failed", 1011)
    assert "zero" not in error["message"] and "ZeroDivisionError" in caplog.text


def test_who_says_nothing_is_let_go(site, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_S", 0.01)
    with Talk(site) as talk:
        (error,), code = talk.rest()
    assert (error["code"], code) == ("timeout", 1008)


def announced(size: int, rate: int = 16000, channels: int = 1) -> dict:
    return {"type": "session.audio", "sample_rate": rate, "channels": channels, "bytes": size}


LATER = {
    "unannounced": ([b"\0\0"], 1008),
    "less than announced": ([announced(4), b"\0\0"], 1008),
    "text instead": ([announced(4), {"type": "session.ping"}], 1008),
    "half a sample": ([announced(6, channels=2)], 1008),
    "no sound": ([announced(0)], 1008),
    "too much sound": ([announced(2 << 20)], 1008),
    "two seconds of a microphone": ([announced(64000) | {"live": True}], 1008),
    "odd rate": ([announced(4, rate=0)], 1008),
    "three ears": ([announced(6, channels=3)], 1008),
    "a second start": ([{"type": "session.start"}], 1008),
    "no event": ([{"type": "session.interaction", "event_id": "a"}], 1008),
    "event is text": ([{"type": "session.interaction", "event_id": "a", "event": "forward"}], 1008),
    "ping with a book": ([{"type": "session.ping", "t": {"a": 1}}], 1008),
    "too long": (["x" * 17000], 1009),
}


@pytest.mark.parametrize("case", LATER)
def test_what_is_not_the_protocol_ends_the_connection_but_not_the_session(site, case):
    messages, code = LATER[case]
    talk, session = begun(site)
    with talk:
        for message in messages:
            talk.say(message)
        found, closed = talk.rest()
    assert closed == code
    errors = [m for m in found if m["type"] == "error"]
    assert len(errors) == 1
    assert session.left.wait(PATIENT_S) and session.state == "running" and not session.told


def test_a_message_that_nobody_reads_to_its_end(site):
    talk, session = begun(site)
    with talk, suppress(ConnectionClosed):  # the server hangs up while it is being sent
        talk.say("x" * (2 << 20))
        assert talk.rest()[1] == 1009
    assert session.left.wait(PATIENT_S) and session.state == "running" and not session.told


def test_text_that_is_none_is_no_error_of_the_server(site, caplog):
    talk, session = begun(site)
    with talk:
        talk._socket.send(b"\xff\xfe", text=True)
        assert talk.rest()[1] == 1007
    assert session.left.wait(PATIENT_S) and not caplog.records


def test_a_person_s_mistake_is_answered_and_it_goes_on(site):
    talk, session = begun(site)
    with talk:
        for id, event in {
            "a": {"type": "action", "action": "fly"},
            "b": {"type": "prompt", "prompt": "é" * 1500},
            "d" * 65: {"type": "interrupt"},
            "c": {"type": "action", "action": "forward"},
        }.items():
            talk.say({"type": "session.interaction", "event_id": id, "event": event})
        talk.say({"type": "session.ping", "t": 1.5})
        errors = [talk.until("error") for _ in range(3)]
        assert [(error["code"], error["event_id"]) for error in errors] == [
            ("unprocessable", "a"),
            ("bad_request", "b"),
            ("bad_request", "d" * 65),
        ]
        assert talk.until("session.pong")["t"] == 1.5
    assert session.of("event") == [["c", {"type": "action", "action": "forward"}]]


def test_keys_that_are_held_together_and_a_mouse_are_heard_as_they_are_said(site, monkeypatch):
    controls = {"keys": ["forward", "left"], "one": False, "axes": ["pitch", "yaw"]}
    monkeypatch.setitem(OFFER, "controls", controls)
    talk, session = begun(site)
    with talk:
        for id, event in {
            "a": {"keys": ["left", "forward"], "mouse": [0.0, 0.5], "seq": 3},
            "b": {"keys": ["jump"]},
            "c": {"mouse": [0.5]},
            "d": {"mouse": [0.0, 50]},
            "e": {"action": "left"},
            "f": {"mouse": [-1, 0]},
        }.items():
            talk.say({"type": "session.interaction", "event_id": id, "event": {"type": "action", **event}})
        errors = [talk.until("error") for _ in range(3)]
        talk.say({"type": "session.ping"})
        talk.until("session.pong")
    assert [(error["code"], error["event_id"]) for error in errors] == [("unprocessable", id) for id in "bcd"]
    assert all("\n" not in error["message"] for error in errors)
    assert session.of("event") == [
        ["a", {"type": "action", "keys": ["left", "forward"], "mouse": [0.0, 0.5]}],
        ["e", {"type": "action", "action": "left"}],
        ["f", {"type": "action", "mouse": [-1, 0]}],
    ]


def test_a_few_too_many_messages_are_not_heard_and_a_flood_ends_it(site, monkeypatch):
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: 0.0))  # however long they take
    talk, _ = begun(site)
    with talk:
        for _ in range(60):
            talk.say({"type": "session.ping"})
        assert talk.until("error")["code"] == "too_many"
        with pytest.raises(ConnectionClosed):
            for _ in range(2000):
                talk.say({"type": "session.ping"})
                talk.hear()
        assert talk.rest()[1] == 1008


def test_a_microphone_is_heard_at_16_khz_in_one_piece(site):
    talk, session = begun(site)
    at = np.arange(48000) / 48000
    tone = (8000 * np.sin(2 * np.pi * 440 * at)).astype("<i2")
    stereo = np.repeat(tone, 2).tobytes()
    with talk:
        for start in range(0, 6 * 3840, 3840):  # 20 ms at a time
            piece = stereo[start : start + 3840]
            talk.say(announced(len(piece), 48000, 2) | {"live": True})
            talk.say(piece)
        talk.say({"type": "session.ping", "t": 1})
        talk.until("session.pong")
    pieces = session.of("sound")
    assert not session.of("speech")
    ends = [position + len(pcm) // 2 for pcm, position in pieces]
    assert [position for _, position in pieces] == [0, *ends[:-1]]
    heard = np.frombuffer(b"".join(pcm for pcm, _ in pieces), "<i2")
    assert len(heard) == pytest.approx(1920, abs=64)
    wanted = 8000 * np.sin(2 * np.pi * 440 * np.arange(200, 1800) / 16000)
    assert np.corrcoef(heard[200:1800], wanted)[0, 1] > 0.9


def test_speech_that_is_too_much_is_said_to_be(site):
    talk, session = begun(site)
    half = bytes(1 << 20)
    with talk:
        for _ in range(2):
            talk.say(announced(len(half)))
            talk.say(half)
        assert talk.until("error")["code"] == "audio_full"
        talk.say({"type": "session.ping"})
        talk.until("session.pong")
    assert session.of("speech") == [[half]]


def test_who_waits_is_told_his_place_and_then_it_begins(site):
    session = FakeSession(1)
    session.state, session.waiting = "queued", (2, 30.0)
    site.gateway.next = lambda wanted: session
    with Talk(site) as talk:
        talk.say({"type": "session.start", "queue": True})
        first = talk.hear()
        assert (first["type"], first["position"], first["wait_s"]) == ("session.queued", 2, 30.0)
        session.waiting = (1, 10.0)
        assert talk.hear()["position"] == 1
        session.state, session.waiting = "running", None
        site.call(session.play, both(0.4))
        assert talk.hear()["type"] == "session.started"
        assert talk.until("video.start")["fps"] == FPS
    assert site.gateway.wanted == [{"queue": True}]


def test_one_connection_for_control_alone(site):
    site.gateway.sessions["session-1"] = FakeSession(1, both(0.8), "stopped")
    with Talk(site) as talk:
        talk.say({"type": "session.start", "session": "session-1", "secret": "secret-1", "media": False})
        found, code = talk.rest()
    assert code == 1000 and not any(isinstance(m, bytes) for m in found)
    assert [m["chunk"] for m in found if m["type"] == "video.chunk_metadata"] == [0, 1]
    assert not any(m["type"] == "video.start" for m in found)


def test_a_server_that_ends_says_that_it_goes_away(site):
    talk, session = begun(site)
    with talk:
        site.call(session.stop, "drained")
        found, code = talk.rest()
    assert (found[-1]["type"], found[-1]["reason"], code) == ("session.done", "drained", 1001)


def test_stop_ends_the_session(site):
    talk, session = begun(site)
    with talk:
        talk.say({"type": "session.stop"})
        found, code = talk.rest()
    assert (found[-1]["reason"], code, session.reason) == ("stopped", 1000, "stopped")


def test_who_reads_nothing_is_let_go_and_nothing_stays(site, monkeypatch):
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.1)
    before = site.call(lambda: len(asyncio.all_tasks()))
    talk, session = begun(site, max_queue=16, close_timeout=0.1)
    with talk:
        notice = {"type": "session.notice", "kind": "held", "message": "x" * 4000}
        while not session.left.wait(0.01):
            site.call(lambda: [viewer.notice(notice) for viewer in session.viewers])
    assert session.state == "running"
    end = time.monotonic() + PATIENT_S
    while site.call(lambda: len(asyncio.all_tasks())) > before:
        assert time.monotonic() < end, "something stays"
