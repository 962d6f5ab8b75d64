"""Who may ask: names, pages, tokens, paths; over a real port, and for addresses that it cannot have, without one."""

import asyncio
import itertools

import pytest
import websockets
from starlette.responses import PlainTextResponse
from websockets.asyncio.client import connect

from conf.schema.serve import ServeConfig
from serve.guard import DRESS, Guard
from serve.limits import Buckets
from tests.serve.played import JSON, Gateway, ask, asked, opened

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ALL = [
    ("GET", "/"), ("GET", "/page/app.js"), ("GET", "/healthz"), ("GET", "/health"), ("GET", "/readyz"),
    ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/ice-servers"), ("POST", "/v1/uploads"),
    ("POST", "/v1/sessions"), ("GET", "/v1/sessions/x"), ("DELETE", "/v1/sessions/x"), ("POST", "/v1/sessions/x/offer"),
    ("GET", "/nothing"), ("POST", "/healthz"), ("POST", "/"), ("GET", "/healthz/x"), ("GET", "/pagex"),
]  # fmt: skip
FREE = ALL[:5]


async def passed(serve: ServeConfig, **scope) -> int:
    """The status of a request that is not sent by anybody."""
    made = {
        "type": "http", "method": "GET", "path": "/v1/models", "scheme": "http", "query_string": b"",
        "server": ("127.0.0.1", 8080), "client": ("127.0.0.1", 1), "headers": [],
    } | scope  # fmt: skip
    made["headers"] = [(k.lower().encode(), v.encode("latin-1")) for k, v in made["headers"]]
    sent = []

    async def send(message):
        sent.append(message)

    await Guard(PlainTextResponse("in"), serve, Buckets(1000))(made, None, send)
    return sent[0]["status"]


def status(serve: ServeConfig, headers, **scope) -> int:
    return asyncio.run(passed(serve, headers=headers, **scope))


@pytest.mark.parametrize("method, path", ALL)
def test_only_what_is_listed_needs_no_token(tmp_path, method, path):
    gateway = Gateway(tmp_path, token=TOKEN)
    free = (method, path) in FREE
    for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer x"}):
        answer = asked(gateway, method, path, headers)
        if free:
            assert answer.status == 200
        else:
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", headers
    assert asked(gateway, method, path, BEARER).status != 401


def test_a_secret_goes_beside_the_token(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    session = gateway.made()
    where = f"/v1/sessions/{session.id}"
    assert asked(gateway, "GET", where, BEARER).status == 401
    assert asked(gateway, "GET", where, {"Authorization": f"Bearer {session.secret}"}).status == 401
    assert asked(gateway, "GET", where, BEARER | {"X-Session-Secret": session.secret}).status == 200


def test_a_sessions_secret_is_enough_for_what_is_its_own_and_no_more(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    session, other = gateway.made(), gateway.made()
    own, where = {"X-Session-Secret": session.secret}, f"/v1/sessions/{session.id}"
    for path in (where, "/v1/ice-servers", "/v1/models"):
        assert asked(gateway, "GET", path, own).status == 200, path
        for wrong in ({}, {"X-Session-Secret": ""}, {"X-Session-Secret": "x"}, {"X-Session-Secret": TOKEN}):
            assert asked(gateway, "GET", path, wrong).status == 401, path
    assert asked(gateway, "POST", f"{where}/offer", JSON | own, {"sdp": "v=0"}).status == 200
    for method, path in (
        ("GET", f"/v1/sessions/{other.id}"), ("DELETE", f"/v1/sessions/{other.id}"), ("GET", f"{where}0"),
        ("POST", f"/v1/sessions/{other.id}/offer"), ("POST", "/v1/sessions"), ("POST", "/v1/uploads"),
        ("GET", "/metrics"), ("POST", "/v1/models"), ("GET", "/v1/sessions"), ("GET", "/v1/modelsx"),
    ):  # fmt: skip
        assert asked(gateway, method, path, JSON | own, {}).status == 401, (method, path)
    assert asked(gateway, "DELETE", where, own).status == 200
    assert other.stopped == [] and len(gateway.sessions) == 2


@pytest.mark.parametrize("path", [
    "/../etc/passwd", "/page/../app.js", "/page/..", "/page/%2e%2e/x", "/page/..%2fx", "/page/%00", "/page/x%00.js",
    "//healthz", "/healthz//", "/page/.hidden", "/v1/sessions/%2e", "/\\x", "/healthz%20", "/%68ealthz", "/page/é",
    "/" + "a" * 600, "http://127.0.0.1/healthz", "*", "healthz", "/page/;x", "/page/%", "/page/%c0%ae",
])  # fmt: skip
def test_paths_with_tricks_lead_nowhere(tmp_path, path):
    answer = asked(Gateway(tmp_path), "GET", path)
    assert answer.status in (400, 404), answer
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", [
    "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "127.0.0.1.evil.example:{port}", "", " ", "[::1]:{port}",
    "127.0.0.1:{port}@evil.example", "evil.example:{port}", "127.0.0.1:{port}:{port}", "2130706433:{port}",
    "127.0.0.1:99999",
])  # fmt: skip
def test_other_names_are_not_ours(tmp_path, host):
    gateway = Gateway(tmp_path)

    async def once():
        async with opened(gateway) as port:
            return await ask(port, "GET", "/healthz", {"Host": host.format(port=port)})

    assert asyncio.run(once()).status in (400, 403)


def test_a_request_without_a_name_is_refused(tmp_path):
    assert asked(Gateway(tmp_path), "GET", "/healthz", {"Host": None}, version="1.0").status == 403
    assert asked(Gateway(tmp_path), "GET", "/healthz", {"Host": None}).status == 400


@pytest.mark.parametrize("host, good", [
    ("127.0.0.1:8080", True), ("localhost:8080", True), ("LOCALHOST:8080", True), ("localhost.:8080", True),
    ("live.example", True), ("live.example:4711", True), ("other.example:444", True), ("other.example", False),
    ("[::1]", True), ("evil.example", False), ("127.0.0.1", False),
])  # fmt: skip
def test_names_are_those_of_the_settings_and_its_own(host, good):
    serve = ServeConfig(names=["Live.Example", "other.example:444", "::1"])
    assert status(serve, [("Host", host)]) == (200 if good else 403)


def test_where_it_listens_to_all_its_address_is_its_name():
    serve = ServeConfig(host="0.0.0.0", token=TOKEN)
    to = {"server": ("192.168.3.4", 8080), "path": "/healthz"}
    assert status(serve, [("Host", "192.168.3.4:8080")], **to) == 200
    assert status(serve, [("Host", "localhost:8080")], **to) == 403
    assert status(serve, [("Host", "[::ffff:192.168.3.4]:8080")], **to) == 200
    assert status(serve, [("Host", "0.0.0.0:8080")], **(to | {"server": ("10.0.0.1", 8080)})) == 200


OWN, HOST = "http://127.0.0.1:8080", ("Host", "127.0.0.1:8080")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("origin, good", [
    (None, True), (OWN, True), ("https://friend.example", True), ("https://FRIEND.example", True),
    ("null", False), ("https://127.0.0.1:8080", False), ("http://127.0.0.1", False), ("http://localhost:8080", False),
    ("https://friend.example:444", False), ("http://friend.example", False), ("https://friend.example.evil", False),
    ("https://evil.example", False), ("", False), ("file://", False), ("https://friend.example, http://x", False),
])  # fmt: skip
def test_pages_of_other_sites_may_not_ask(method, origin, good):
    serve = ServeConfig(origins=["https://friend.example/"])
    headers = [HOST] + ([("Origin", origin)] if origin is not None else [])
    got = status(serve, headers, method=method)
    assert (got in (200, 204)) if good else got == 403


def test_a_page_behind_a_proxy_that_ends_tls_is_ours():
    serve = ServeConfig(names=["live.example"])
    host = ("Host", "live.example")
    assert status(serve, [host, ("Origin", "https://live.example")]) == 200
    assert status(serve, [host, ("Origin", "https://live.example:8443")]) == 403
    assert status(serve, [host, ("Origin", "https://live.example.evil")]) == 403
    assert status(ServeConfig(), [HOST, ("Origin", "https://127.0.0.1")]) == 403


def test_two_origins_or_two_names_are_none():
    assert status(ServeConfig(), [HOST, ("Origin", OWN), ("Origin", OWN)]) == 403
    assert status(ServeConfig(), [HOST, ("Host", "evil.example")]) == 403


def test_a_listed_page_is_told_what_it_may_and_no_other_is(tmp_path):
    friend = {"Origin": "https://friend.example"}
    gateway = Gateway(tmp_path, origins=["https://friend.example"], token=TOKEN)
    asks = friend | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-session-secret"}
    before = asked(gateway, "OPTIONS", "/v1/sessions", asks)
    assert before.status == 204 and before.headers["access-control-allow-origin"] == "https://friend.example"
    assert "x-session-secret" in before.headers["access-control-allow-headers"]
    for headers, expected in ((friend | BEARER, 201), (friend, 401)):
        answer = asked(gateway, "POST", "/v1/sessions", JSON | headers, {})
        assert answer.status == expected
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert answer.headers["access-control-expose-headers"] == "Location, Retry-After"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    for headers in ({}, {"Origin": "https://evil.example"}):
        assert (
            "access-control-allow-origin"
            not in asked(gateway, "POST", "/v1/sessions", JSON | headers | BEARER, {}).headers
        )
    assert asked(gateway, "OPTIONS", "/v1/sessions", BEARER).status == 405


@pytest.mark.parametrize("method, path, headers", [
    ("GET", "/v1/models", {}), ("GET", "/nothing", {}), ("GET", "/healthz", {"Host": "evil.example"}),
    ("POST", "/v1/sessions", {}), ("BREW", "/", {}), ("GET", "/%00", {}), ("G\x01T", "/", {}),
])  # fmt: skip
def test_all_answers_have_the_headers(tmp_path, method, path, headers):
    answer = asked(Gateway(tmp_path), method, path, headers)
    assert {name: answer.headers.get(name) for name in DRESS} == DRESS
    assert not {"server", "date", "access-control-allow-origin"} & set(answer.headers)


def test_files_of_the_page_set_their_own(tmp_path):
    assert asked(Gateway(tmp_path), "GET", "/page/app.js").headers["cache-control"] == "max-age=60"


def test_a_caller_is_who_a_proxy_of_ours_says_and_nobody_else_does(tmp_path):
    said = JSON | {"X-Forwarded-For": "6.6.6.6, 203.0.113.9"}
    for names, expected in ((["127.0.0.1"], "203.0.113.9"), ([], "127.0.0.1")):
        gateway = Gateway(tmp_path, names=names)
        asked(gateway, "POST", "/v1/sessions", said, {})
        assert gateway.callers == [expected]
    gateway = Gateway(tmp_path, names=["127.0.0.1"])
    asked(gateway, "POST", "/v1/sessions", JSON | {"X-Forwarded-For": "nonsense"}, {})
    assert gateway.callers == ["127.0.0.1"]


# --- WebSockets


def talked(gateway: Gateway, said: str = "hello", **options) -> tuple[str, str | None]:
    """What a WebSocket says back, and the subprotocol."""

    async def once():
        async with opened(gateway) as port:
            uri = f"ws://127.0.0.1:{port}/v1/realtime/video"
            async with connect(uri, proxy=None, open_timeout=5, close_timeout=1, **options) as socket:
                await socket.send(said)
                return await socket.recv(), socket.subprotocol

    return asyncio.run(once())


def refused(gateway: Gateway, **options) -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        talked(gateway, **options)
    assert caught.value.response.headers["content-type"] == "application/problem+json"
    return caught.value.response.status_code


def test_a_token_comes_as_a_subprotocol_and_goes_no_further(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    assert talked(gateway, subprotocols=["everframe.v1", f"everframe.token.{TOKEN}"]) == ("hello", "everframe.v1")
    assert talked(gateway, additional_headers=BEARER) == ("hello", None)
    assert gateway.protocols == [["everframe.v1"], []]


def test_a_sessions_secret_comes_as_a_subprotocol_too(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    _, second = gateway.made(), gateway.made()
    said = ["everframe.v1", f"everframe.session.{second.secret}"]
    assert talked(gateway, subprotocols=said) == ("hello", "everframe.v1")
    assert talked(gateway, subprotocols=[*said, f"everframe.token.{TOKEN}"]) == ("hello", "everframe.v1")
    assert gateway.protocols == [["everframe.v1"]] * 2
    assert gateway.own == [second.id, None]
    assert refused(gateway, subprotocols=["everframe.v1", "everframe.session.another"]) == 401
    assert refused(gateway, subprotocols=["everframe.v1", f"everframe.token.{second.secret}"]) == 401
    assert refused(gateway, additional_headers={"X-Session-Secret": second.secret}) == 401


@pytest.mark.parametrize("options", [
    {}, {"subprotocols": ["everframe.v1"]}, {"subprotocols": ["everframe.v1", "everframe.token.wrong"]},
    {"subprotocols": ["everframe.v1", TOKEN]}, {"additional_headers": {"Authorization": "Bearer no"}},
])  # fmt: skip
def test_a_socket_without_the_token_is_refused(tmp_path, options):
    gateway = Gateway(tmp_path, token=TOKEN)
    assert refused(gateway, **options) == 401
    assert gateway.protocols == []


def test_a_socket_of_another_page_or_name_is_refused(tmp_path):
    gateway = Gateway(tmp_path)
    assert refused(gateway, origin="https://evil.example") == 403
    assert refused(gateway, additional_headers={"Origin": "null"}) == 403
    assert talked(gateway)[0] == "hello"


def test_a_socket_at_another_path_is_refused(tmp_path):
    async def once():
        async with opened(Gateway(tmp_path)) as port:
            for path in ("/v1/models", "/", "/v1/realtime/video/", "/v1/realtime/%76ideo"):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    async with connect(f"ws://127.0.0.1:{port}{path}", proxy=None):
                        pass
                assert caught.value.response.status_code in (403, 404)

    asyncio.run(once())


def test_sockets_are_counted_like_requests(tmp_path):
    gateway = Gateway(tmp_path, posts_per_minute=2)

    async def several():
        async with opened(gateway) as port:
            uri = f"ws://127.0.0.1:{port}/v1/realtime/video"
            for number in itertools.count():
                try:
                    async with connect(uri, proxy=None, close_timeout=1):
                        pass
                except websockets.InvalidStatus as error:
                    return number, error.response

    number, response = asyncio.run(several())
    assert number == 2 and response.status_code == 429 and int(response.headers["retry-after"]) >= 1


def test_a_failure_in_a_socket_is_ours_to_know(tmp_path, caplog):
    gateway = Gateway(tmp_path)
    gateway.problem = RuntimeError("the innermost")
    assert refused(gateway) == 500
    assert len(caplog.records) == 1 and "the innermost" in caplog.text
