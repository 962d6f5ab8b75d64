"""What is answered over HTTP: over a real port, by a gateway that is played."""

import asyncio
import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from serve.problems import TYPES, Problem
from tests.serve.played import JSON, Gateway, ask, asked, opened

SECRET = {"X-Session-Secret": "open sesame"}


def picture(size=(64, 48), form="PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, form)
    return file.getvalue()


def test_probes_say_what_is_the_case(tmp_path):
    gateway = Gateway(tmp_path)
    assert asked(gateway, "GET", "/healthz").body == {"status": "ok"}
    assert asked(gateway, "GET", "/health").status == 200
    assert asked(gateway, "GET", "/readyz").body == {"status": "ready"}
    gateway.unready = ["no worker has loaded"]
    answer = asked(gateway, "GET", "/readyz")
    assert answer.status == 503 and answer.body["reasons"] == gateway.unready
    assert asked(gateway, "GET", "/healthz").status == 200


def test_what_is_offered_and_measured(tmp_path):
    gateway = Gateway(tmp_path, ice_servers=["stun:a.example:3478"])
    assert asked(gateway, "GET", "/v1/models").body == {"object": "list", "data": gateway.offers()}
    assert asked(gateway, "GET", "/v1/ice-servers").body == {"iceServers": [{"urls": ["stun:a.example:3478"]}]}
    answer = asked(gateway, "GET", "/metrics")
    assert answer.text == "figures 1\n" and answer.headers["content-type"] == "text/plain; version=1.0.0"


def test_a_session_is_opened_looked_at_and_ended(tmp_path):
    gateway = Gateway(tmp_path)
    answer = asked(gateway, "POST", "/v1/sessions", JSON, {"model": "one", "prompt": "a rainy day", "seed": 3})
    assert answer.status == 201
    told = answer.body
    assert set(told) == {
        "id", "secret", "state", "model", "expires_at", "offer", "whip", "whep", "realtime",
    }  # fmt: skip
    assert answer.headers["location"] == f"/v1/sessions/{told['id']}" == told["offer"].removesuffix("/offer")
    assert gateway.wanted == {"model": "one", "prompt": "a rainy day", "seed": 3}
    session = gateway.session(told["id"])
    path, secret = answer.headers["location"], {"X-Session-Secret": told["secret"]}
    assert asked(gateway, "GET", path, secret).body == session.figures()
    assert asked(gateway, "GET", path, {"Authorization": f"Bearer {told['secret']}"}).status == 200
    assert asked(gateway, "DELETE", path, secret).body == {"id": session.id, "state": "ended"}
    assert session.stopped == ["stopped"]


def test_who_waits_is_told_where(tmp_path):
    gateway = Gateway(tmp_path)
    gateway.next_state, gateway.next_waiting = "queued", (2, 31.5)
    answer = asked(gateway, "POST", "/v1/sessions", JSON, {"queue": True})
    assert answer.status == 202
    assert (answer.body["state"], answer.body["position"], answer.body["wait_s"]) == ("queued", 2, 31.5)
    offered = asked(
        gateway, "POST", answer.body["offer"], JSON | {"X-Session-Secret": answer.body["secret"]}, {"sdp": "v=0"}
    )
    assert offered.status == 503 and offered.body["type"] == "not_ready"


@pytest.mark.parametrize("method, path", [("GET", ""), ("DELETE", ""), ("POST", "/offer")])
def test_a_session_is_for_those_who_know_its_secret(tmp_path, method, path):
    gateway = Gateway(tmp_path)
    session = gateway.made()
    body = {"sdp": "v=0"} if method == "POST" else None
    where = f"/v1/sessions/{session.id}{path}"
    assert asked(gateway, method, where, JSON, body).status == 401
    for wrong in ("", "x", session.secret[:-1], session.secret + "x", "\xe9"):
        answer = asked(gateway, method, where, JSON | {"X-Session-Secret": wrong}, body)
        assert answer.status == 403, wrong
        assert session.secret not in answer.text
    assert asked(gateway, method, f"/v1/sessions/another{path}", JSON | SECRET, body).status == 404
    assert session.stopped == []


def test_an_offer_is_answered_and_not_once_it_is_over(tmp_path):
    gateway = Gateway(tmp_path)
    session = gateway.made()
    where, headers = f"/v1/sessions/{session.id}/offer", JSON | {"X-Session-Secret": session.secret}
    assert asked(gateway, "POST", where, headers, {"sdp": "v=0", "type": "offer"}).body == {
        "sdp": "v=0!",
        "type": "answer",
    }
    session.state = "ended"
    assert asked(gateway, "POST", where, headers, {"sdp": "v=0"}).status == 410


@pytest.mark.parametrize(
    "body, status, words",
    [
        ({"promt": "x"}, 422, "did you mean prompt?"),
        ({"seed": "3"}, 422, "must be a whole number"),
        ({"seed": -1}, 422, "from 0"),
        ({"seed": True}, 422, "must be a whole number"),
        ({"prompt": "é" * 1025}, 422, "2048 bytes"),
        ({"queue": 1}, 422, "true or false"),
        ([], 400, "no object"),
        (b"", 400, "no JSON"),
        (b'{"seed": 1, "seed": 2}', 400, "each key once"),
        (b'{"seconds": NaN}', 400, "no JSON"),
        (b'{"prompt": "\\ud800"}', 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 60000, 400, "no JSON"),
        (b"1" * 5000, 400, "no JSON"),
        (b'{"prompt": "' + b"x" * 70000 + b'"}', 413, "65536 bytes"),
    ],
)  # fmt: skip
def test_bodies_are_strict(tmp_path, body, status, words):
    gateway = Gateway(tmp_path)
    answer = asked(gateway, "POST", "/v1/sessions", JSON, body)
    assert answer.status == status and words in answer.body["detail"], answer.text
    assert gateway.wanted is None


def test_another_kind_of_body_is_refused(tmp_path):
    answer = asked(Gateway(tmp_path), "POST", "/v1/sessions", {"Content-Type": "text/plain"}, b"{}")
    assert answer.status == 415 and answer.body["type"] == "unsupported_media"


@pytest.mark.parametrize("type", sorted(TYPES))
def test_every_problem_is_told_as_the_standard_has_it(tmp_path, type):
    gateway = Gateway(tmp_path)
    gateway.problem = Problem(type, "words", 2.2)
    answer = asked(gateway, "POST", "/v1/sessions", JSON, {})
    assert answer.status == TYPES[type] and answer.headers["retry-after"] == "3"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body == {
        "type": type, "title": type.replace("_", " "), "status": TYPES[type], "detail": "words", "retry_after_s": 2.2,
    }  # fmt: skip


def test_what_was_not_foreseen_is_told_to_us_and_not_to_them(tmp_path, caplog):
    gateway = Gateway(tmp_path)
    gateway.problem = RuntimeError("the innermost")
    answer = asked(gateway, "POST", "/v1/sessions", JSON, {"prompt": "a secret wish"})
    assert answer.status == 500 and answer.body["type"] == "failed" and "innermost" not in answer.text
    assert "the innermost" in caplog.text and "a secret wish" not in caplog.text
    assert len(caplog.records) == 1


def test_methods_and_paths_that_are_none(tmp_path):
    gateway = Gateway(tmp_path)
    answer = asked(gateway, "DELETE", "/v1/models")
    assert answer.status == 405 and "GET" in answer.headers["allow"] and answer.body["type"] == "method_not_allowed"
    assert asked(gateway, "GET", "/v1/nothing").body["type"] == "not_found"
    assert asked(gateway, "GET", "/v1/models/").status == 404
    assert asked(gateway, "BREW", "/v1/models").status == 405


def test_only_so_many_requests_a_minute(tmp_path):
    gateway = Gateway(tmp_path, posts_per_minute=3)

    async def several():
        async with opened(gateway) as port:
            return [await ask(port, "POST", "/v1/sessions", JSON, {}) for _ in range(5)]

    answers = asyncio.run(several())
    assert [answer.status for answer in answers] == [201] * 3 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) in range(1, 21)


def test_a_picture_is_sent_and_used(tmp_path):
    gateway = Gateway(tmp_path)
    answer = asked(gateway, "POST", "/v1/uploads", {"Content-Type": "image/png"}, picture())
    assert answer.status == 201 and (answer.body["width"], answer.body["height"]) == (64, 48)
    asked(gateway, "POST", "/v1/sessions", JSON, {"image": answer.body["id"]})
    assert gateway.wanted["image"] == answer.body["id"]
    data = base64.b64encode(picture((32, 32), "JPEG")).decode()
    assert asked(gateway, "POST", "/v1/sessions", JSON, {"image": data}).status == 201
    assert asked(gateway, "POST", "/v1/uploads", {"Content-Type": "image/gif"}, picture()).status == 415
    assert asked(gateway, "POST", "/v1/uploads", {"Content-Type": "image/png"}, b"GIF89a").status == 415


def test_a_body_that_is_announced_too_long_is_not_read(tmp_path):
    gateway = Gateway(tmp_path)

    async def announced():
        async with opened(gateway) as port:
            return await ask(port, "POST", "/v1/uploads", {"Content-Type": "image/png", "Content-Length": 1 << 40})

    answer = asyncio.run(announced())
    assert answer.status == 413 and answer.headers["connection"] == "close"


def test_a_body_in_parts_is_counted_as_it_comes(tmp_path):
    gateway = Gateway(tmp_path)

    async def parts():
        async with opened(gateway) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(9):
                writer.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    assert b" 413 " in asyncio.run(parts())


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("serve.limits.body.__defaults__", (0.05,))
    gateway = Gateway(tmp_path)

    async def waiting():
        async with opened(gateway) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: 10\r\n\r\n{{".encode())
            answer = await reader.read()
            writer.close()
            return answer

    answer = asyncio.run(waiting())
    assert b" 408 " in answer and json.loads(answer.rpartition(b"\r\n\r\n")[2])["type"] == "timeout"
