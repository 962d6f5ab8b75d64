"""A program's end against the real endpoint: what is saved plays, what is said arrives, what is refused is told."""

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from serve import client
from serve.ahead import HELD_S, PIECE_S, Ahead
from serve.problems import Problem
from tests.patience import PATIENT_S
from tests.serve.realtime_packets import CHUNK, FPS, both
from tests.serve.realtime_server import OFFER, FakeGateway, FakeSession, serving

EXAMPLE = Path(__file__).parents[2] / "docs/examples/record_session.py"


@pytest.fixture(scope="module")
def running():
    with serving() as site:
        yield site


@pytest.fixture
def site(running):
    running.gateway = FakeGateway()
    return running


def frames_of(path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(frame.time) for frame in file.decode(video=0)]


def test_what_is_saved_plays_and_is_as_long_as_was_asked(site, tmp_path):
    site.gateway.next = lambda wanted: FakeSession(1, both(3.2), "stopped")
    with client.connect(site.url, prompt="a maze") as session:
        assert (session.id, session.secret, session.model) == ("session-1", "secret-1", "maze")
        saved = session.save(tmp_path / "a.mp4", seconds=1.0)
        rest = list(session)
    assert saved == pytest.approx(1.2)  # whole chunks of 0.4 s
    assert frames_of(tmp_path / "a.mp4") == pytest.approx([i / FPS for i in range(24)])
    assert rest[0].first and rest[0].chunk.chunk == 3
    assert {part.chunk.chunk for part in rest} == set(range(3, 8))
    assert session.done["reason"] == "stopped"


def test_a_session_that_ends_first_is_saved_whole(site, tmp_path):
    with client.connect(site.url) as session:
        assert session.save(tmp_path / "a.mp4", seconds=60) == pytest.approx(1.2)
        with pytest.raises(client.Refused, match="ended") as refused:
            session.save(tmp_path / "b.mp4", seconds=1)
    assert refused.value.code == "ended"
    assert len(frames_of(tmp_path / "a.mp4")) == 24
    assert not (tmp_path / "b.mp4").exists()


def test_a_session_is_saved_again_and_again_each_file_from_its_first_picture(site, tmp_path):
    made = FakeSession(1, both(1.2))
    site.gateway.next = lambda wanted: made
    with client.connect(site.url) as session:
        for action in ("forward", "none", "forward"):
            name = session.act(action)
            assert session.save(tmp_path / f"{name}.mp4", seconds=0.4) == pytest.approx(0.4)
    assert [rest[1]["action"] for rest in made.of("event")] == ["forward", "none", "forward"]
    for name in ("e1", "e2", "e3"):
        assert frames_of(tmp_path / f"{name}.mp4") == pytest.approx([i / FPS for i in range(CHUNK)])
    assert made.reason == "stopped" and len(site.gateway.wanted) == 1


@pytest.mark.parametrize(
    "url", ["127.0.0.1:18618", "localhost:80", "ftp://x", "", "http://", "http://x:99999", "http://[::1"]
)
def test_an_address_of_no_server_is_told_in_a_line(url):
    for ask in (client.connect, client.create, lambda url: client.delete(url, "id", "secret")):
        with pytest.raises(client.Refused, match=r"url=.*: is http:// or https:// and a host") as refused:
            ask(url)
        assert refused.value.code == "bad_request" and "\n" not in str(refused.value)


def test_parts_come_with_their_chunk(site):
    with client.connect(site.url) as session:
        parts = list(session)
    assert parts[0].init and not any(part.init for part in parts[1:])
    firsts = [part.chunk for part in parts if part.first]
    assert [(c.chunk, c.frames) for c in firsts] == [(i, CHUNK) for i in range(3)]
    assert session.mime.startswith("video/mp4")


def test_what_is_done_arrives_with_the_name_that_was_returned(site):
    made = FakeSession(1)
    site.gateway.next = lambda wanted: made
    with client.connect(site.url) as session:
        names = [session.act("forward"), session.prompt("a maze by night"), session.interrupt()]
        session.hear(np.zeros(320, np.float32), 16000)
        session.stop()
        assert list(session) == []
    assert made.of("event") == [
        [names[0], {"type": "action", "action": "forward"}],
        [names[1], {"type": "prompt", "prompt": "a maze by night"}],
        [names[2], {"type": "interrupt"}],
    ]
    assert made.of("sound") == [[bytes(640), 0]]
    assert len(set(names)) == 3


def test_keys_are_held_together_and_a_mouse_turns(site, monkeypatch):
    made, controls = FakeSession(1), {"keys": ["forward", "left"], "one": False, "axes": ["pitch", "yaw"]}
    monkeypatch.setitem(OFFER, "controls", controls)
    site.gateway.next = lambda wanted: made
    with client.connect(site.url) as session:
        assert session.offer["controls"] == controls
        names = [session.act(keys=("forward", "left"), mouse=np.float32([0, 0.5])), session.act(mouse=[1, 0])]
        session.stop()
        assert list(session) == [] and not session.notices
    assert made.of("event") == [
        [names[0], {"type": "action", "keys": ["forward", "left"], "mouse": [0.0, 0.5]}],
        [names[1], {"type": "action", "mouse": [1.0, 0.0]}],
    ]


def test_a_mistake_that_is_answered_is_kept_and_it_goes_on(site):
    made = FakeSession(1)
    site.gateway.next = lambda wanted: made
    with client.connect(site.url) as session:
        session.act("fly")
        session.stop()
        assert list(session) == []
    assert [notice["code"] for notice in session.notices] == ["unprocessable"]
    assert session.done


def test_speech_of_any_length_is_spoken_in_order(site):
    made = FakeSession(1)
    site.gateway.next = lambda wanted: made
    samples = np.linspace(-1, 1, 16000 * 4, dtype=np.float32)
    with client.connect(site.url) as session:
        session.speak(samples, 16000)
        site.call(made.play, both(0.4))
        assert next(part for part in session if part.first).chunk.audio_held_s == 0
        while sum(len(pcm) for (pcm,) in made.of("speech")) < 2 * len(samples):
            assert made.changed.wait(PATIENT_S)
            made.changed.clear()
    spoken = np.frombuffer(b"".join(pcm for (pcm,) in made.of("speech")), "<i2")
    assert np.array_equal(spoken, (samples * 32767).astype(np.int16))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_more_speech_is_sent_than_is_needed():
    clock, sent, said = Clock(), [], threading.Event()
    ahead = Ahead(lambda samples, rate: (sent.append(len(samples) / rate), said.set()), OSError, clock)
    ahead._thread = threading.current_thread()  # pieces are taken here
    ahead.add(np.zeros(16000 * 60, np.float32), 16000)
    assert ahead.wait_s() is None  # the session has not begun
    ahead.told(0)

    def take() -> float:
        taken = 0.0
        while ahead.wait_s() == 0:
            samples, rate = ahead.take()
            taken += len(samples) / rate
        return taken

    assert take() == pytest.approx(HELD_S)
    assert ahead.wait_s() == pytest.approx(PIECE_S)
    clock.now = 2.0
    assert take() == pytest.approx(2.0)
    ahead.told(HELD_S + 3)  # the server speaks more slowly than was thought
    clock.now = 4.0
    assert take() == 0
    ahead.told(0)
    assert take() == pytest.approx(HELD_S)
    ahead.forget()
    assert ahead.wait_s() is None


def test_who_is_refused_is_told_why_and_when_to_come_again(site):
    def refuse(wanted):
        raise Problem("full", "all 4 places are taken: come again", 12.0)

    site.gateway.next = refuse
    with pytest.raises(client.Refused, match="4 places") as refused:
        client.connect(site.url)
    assert (refused.value.code, refused.value.retry_after_s) == ("full", 12.0)
    with pytest.raises(client.Refused, match="no such session"):
        client.connect(site.url, session="none", secret="none")


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        where = f"127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(client.Refused, match=re.escape(where)) as refused:
        client.connect(f"http://{where}")
    assert refused.value.code == "lost"
    with pytest.raises(client.Refused, match=re.escape(where)):
        client.create(f"http://{where}")


def test_a_connection_that_breaks_is_no_end_of_the_session(site):
    made = FakeSession(1)
    site.gateway.next = lambda wanted: made
    with client.connect(site.url) as session:
        session._connection.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(client.Refused) as refused:
            list(session)
        with pytest.raises(client.Refused):
            session.act("forward")
        session.stop()
    assert refused.value.code == "lost" and session.done is None


def test_sessions_are_opened_and_ended_over_http(site):
    site.gateway.next = lambda wanted: FakeSession(7)
    made = client.create(f"{site.url}/", token="t" * 16, prompt="a maze")
    assert made["id"] == "session-7" and site.gateway.wanted == [{"prompt": "a maze"}]
    assert site.headers["authorization"] == f"Bearer {'t' * 16}"
    with client.connect(site.url, session=made["id"], secret=made["secret"]) as session:
        said = site.headers["sec-websocket-protocol"].split(", ")
        assert said == ["everframe.v1", f"everframe.session.{made['secret']}"]
        client.delete(site.url, made["id"], made["secret"])
        assert list(session) == [] and session.done["reason"] == "stopped"
    assert site.headers["x-session-secret"] == made["secret"]


def test_a_refusal_over_http_is_told_likewise(site):
    def refuse(wanted):
        raise Problem("too_many", "8 sessions are yours already: end one")

    site.gateway.next = refuse
    with pytest.raises(client.Refused, match="end one") as refused:
        client.create(site.url)
    assert refused.value.code == "too_many"
    with pytest.raises(client.Refused, match="404"):
        client.delete(f"{site.url}/elsewhere", "none", "none")


def test_the_example_records_what_it_says(site, tmp_path):
    made = FakeSession(1, both(1.2))
    site.gateway.next = lambda wanted: made
    path = tmp_path / "maze.mp4"
    said = subprocess.run(
        [sys.executable, EXAMPLE, site.url, path, "--seconds", "0.5", "--act", "forward"],
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        env={"PYTHONPATH": str(EXAMPLE.parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{path}: 0.8 s of maze")
    assert len(frames_of(path)) == 2 * CHUNK
    assert made.of("event") == [["e1", {"type": "action", "action": "forward"}]]
    assert made.reason == "stopped"
