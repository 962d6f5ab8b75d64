"""The log: its form, who comes through it, and what is never in it."""

from __future__ import annotations

import io
import json
import logging
import threading
import time

import pytest

from launch.of_sessions import logged as logged_of_worker
from serve import logs
from serve.logs import setup
from serve.redaction import HIDDEN, LONGEST, Hidden
from serve.refusals import EVERY_S, Refusals

log = logging.getLogger("serve.tests")


@pytest.fixture
def logged():
    """logged(kind, ...) sets the log up; logged.text() is what was written. Everything is as it was afterwards."""
    root = logging.getLogger()
    before, level, handlers = list(root.handlers), root.level, []
    others = {name: logging.getLogger(name) for name in (*logs.QUIET, *logs.STRANGERS, *logs.ROUTED)}
    kept = {name: (one.level, list(one.handlers), one.propagate) for name, one in others.items()}
    stream = io.StringIO()

    class Logged:
        def __call__(self, kind: str, *own: str, level: int = logging.INFO) -> None:
            handlers.append(setup(kind, own, level, stream))

        def text(self) -> str:
            handlers[-1].flush()
            return stream.getvalue()

        def objects(self) -> list[dict]:
            return [json.loads(line) for line in self.text().splitlines()]

    yield Logged()
    for handler in handlers:
        handler.close()
    root.handlers, root.level = before, level
    logging.captureWarnings(False)
    for name, one in others.items():
        one.level, one.handlers, one.propagate = kept[name]


def test_a_line_of_text(logged):
    logged("text")
    given = {"session": "Ab3_x9restofit", "model": "nano", "wait_s": 0.123456, "why": None, "said": "two words"}
    log.info("session begins", extra=given)
    (line,) = logged.text().splitlines()
    assert line.split(" ", 1)[1] == 'INFO session begins session=Ab3_x9 model=nano wait_s=0.1235 said="two words"'


def test_an_object_a_line(logged):
    logged("json")
    log.warning("session ends", extra={"session": "Ab3_x9restofit", "frames": 12, "whole": True, "fps": 24.99999})
    (told,) = logged.objects()
    assert told.pop("time").endswith("Z")
    known = {"level": "warning", "event": "session ends", "logger": "serve.tests"}
    assert told == known | {"session": "Ab3_x9", "frames": 12, "whole": True, "fps": 25.0}


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_caller_begins_no_line_of_its_own(logged, kind):
    logged(kind)
    log.info("odd path %s", "/x\n12:00:00.000 INFO all is well\x1b[2J")
    log.info("odd", extra={"path": "/x\n12:00:00.000 INFO all is well"})
    lines = logged.text().splitlines()
    assert len(lines) == 2 and "\x1b" not in logged.text()


def test_other_packages_come_the_same_way(logged):
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(io.StringIO()))
    logged("json")
    logging.getLogger("uvicorn.error").info('127.0.0.1:45584 - "WebSocket /v1/realtime/video?secret=X" [accepted]')
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").error("a fault")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("aioice.ice").info("Check CandidatePair(...)")
    logging.getLogger("aiortc").warning("odd packet")
    assert [told["event"] for told in logged.objects()] == ["a fault", "odd packet"]


def test_setup_again_takes_the_place_of_the_first(logged):
    logged("json")
    logged("json")
    log.info("once")
    assert len(logged.objects()) == 1


SDP = "\r\n".join(
    (
        "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\ns=-\r\na=ice-ufrag:Zx9k",
        "a=ice-pwd:9Sd8fkKJ3kdmVd03kdkfeEfm\r\na=fingerprint:sha-256 AB:CD:12",
        "a=candidate:1 1 udp 2113937151 192.168.7.21 54400 typ host\r\n",
    )
)
TOKEN = "Zk3vQ9_bX7-mT1cJ5wLr8NdYhaB1"
SECRETS = {
    "Authorization: Bearer {}": TOKEN,
    "headers [(b'authorization', b'Bearer {}'), (b'x', b'y')]": TOKEN,
    "headers [(b'x-session-secret', b'{}')]": "short1",
    "{{'X-Session-Secret': '{}'}}": "short2",
    "sec-websocket-protocol: everframe.v1, everframe.token.{}": "mytoken123",
    "sec-websocket-protocol: everframe.v1,everframe.session.{}": "mysecret123",
    "GET /?token={}&x=1": "mytoken123",
    "http://127.0.0.1:8080/#token={}": "mytoken123",
    "serve.token={}": "correct-horse",
    "turn_secret: {}": "battery-staple",
    '{{"type": "session.start", "secret": "{}"}}': "s3-of-theirs",
    "source.session=tcp://10.9.8.7:5000/{}": "00ff00ff00ff",
    "session {} has gone": "H2Pt73eJXK1gtE9RlfafvgaB1",
    "DELETE /v1/sessions/{} 200": "Z-noLfJ5GrJ6a4Y98MeupwaB1",
    "no key {}": "68f3cfaf617c0e68dce1246c3e9cd842",
    '{{"type": "prompt", "prompt": "{}"}}': 'my \\" private words',
    "{{'prompt': \"{}\"}}": "it's mine",
    '{{"prompt": "{}': "unfinished words",
    "prompt={}: is too long; shorten it": "my private words",
    "stream.prompt={}": "my private words",
    "offer {!r}": SDP,
    "offer {}": SDP,
    '{{"sdp": "{}"}}': SDP.replace("\r\n", "\\r\\n"),
    "bad line a=ice-pwd:{}": "9Sd8fkKJ3kdm",
    "caller {}": "203.0.113.77",
    "caller ('{}', 5000)": "203.0.113.77",
    "peer [2001:db8::{}]:443": "beef:1",
    "pair ::ffff:{}": "203.0.113.77",
}


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize(("said", "secret"), SECRETS.items())
def test_what_is_never_in_it(logged, kind, said, secret):
    logged(kind)
    text = said.format(secret)
    log.error(text.replace("%", "%%"))
    log.info("odd", extra={"detail": text})
    try:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise RuntimeError(text) from error
    except RuntimeError:
        log.exception("failed: %s", text)
    found = logged.text()
    assert found.count(HIDDEN) >= 4
    for part in [secret, *secret.splitlines(), "192.168.7.21", "203.0.113", "10.9.8.7"]:
        if part not in ("v=0", "s=-"):
            assert part not in found and repr(part)[1:-1] not in found, found


def test_what_the_server_knows_is_hidden_whatever_it_looks_like(logged):
    logged("text", "open sesame", None)
    logs.hidden.add("hunter2hunter")
    log.warning("they said open sesame, open%20sesame and hunter2hunter")
    assert logged.text().endswith(f"they said {HIDDEN}, {HIDDEN} and {HIDDEN}\n")


def test_figures_of_these_names_are_not_told_at_all(logged):
    logged("json")
    log.info("odd", extra={"prompt": "a", "token": "b", "sdp": "c", "caller": "d"})
    told = logged.objects()[0]
    assert [told[key] for key in ("prompt", "token", "sdp", "caller")] == [HIDDEN] * 4


@pytest.mark.parametrize(
    "said",
    [
        "worker 1 of pocket_avatar is slow: decode of chunk 7 has taken 12 s so far",
        'File "/opt/lib/python3.11/site-packages/opentelemetry/exporter/otlp/proto/http/trace_exporter/__init__.py"',
        "listening at http://127.0.0.1:8080 and 0.0.0.0:80, [::1]:8080",
        "UnicodeEncodeErrorHandler.NotImplementedErrorHandler(x)",
        "12:30:01 model=nano frames=12 uvicorn 0.54.0",
        "started with experiment=live serve.port=0 plan.workers=3",
        "time_to_first_frame_seconds_bucket",
    ],
)
def test_what_is_harmless_stays(said):
    assert Hidden()(said) == said


def test_addresses_are_told_to_whoever_looks_for_a_fault(logged):
    logged("text", level=logging.DEBUG)
    log.debug("pair 203.0.113.9")
    log.info("pair 203.0.113.9")
    assert logged.text().count("203.0.113.9") == 1


def test_no_text_takes_long():
    """Meanwhile nothing else is served. A pattern that tries every way to read a text would take minutes."""
    hidden = Hidden()
    for hostile in (
        'token="' * LONGEST,
        "a" * LONGEST * 4,
        "1:" * LONGEST,
        "v=0\n" + "a=" * LONGEST,
        "-token" * LONGEST,
    ):
        begun = time.process_time()
        assert len(hidden(hostile)) <= 4 * LONGEST
        assert time.process_time() - begun < 5, hostile[:20]


def test_the_servers_own_secrets_stay_however_many_sessions_come_and_go():
    hidden = Hidden(["correct horse"])
    for i in range(10_000):
        hidden.add(f"secret-{i:06d}/")
        hidden.remove(f"secret-{i - 9:06d}/")
    assert hidden("correct horse x") == hidden("secret-009999/ x") == hidden("secret-009999%2F x") == f"{HIDDEN} x"
    assert hidden("secret-000000/ x") == "secret-000000/ x" and len(hidden) == 2 * 10


def test_who_logs_does_not_wait_for_who_reads(logged):
    class Stuck(io.StringIO):
        """Nobody reads until the test lets it."""

        go = threading.Event()

        def write(self, text: str) -> int:
            self.go.wait()
            return super().write(text)

    stuck = Stuck()
    logged("text")
    handler = setup("text", stream=stuck)
    for i in range(logs.WAITING + 100):
        log.info("line %d", i)
    assert 99 <= handler.dropped <= 100
    stuck.go.set()
    handler.close()
    assert f"{handler.dropped} lines were dropped" in stuck.getvalue()
    logged("text")


def test_a_record_that_cannot_be_told_tells_nothing(logged):
    logged("text")
    log.info("two %s %s", "only one, secret1")
    assert "serve.tests" in logged.text() and "secret1" not in logged.text()


def test_a_storm_of_refusals_is_a_line_of_each_kind_now_and_then(caplog):
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(250):
            refusals.add("full")
        refusals.add("too_many")
        now[0] = EVERY_S
        refusals.add("full")
    assert [(r.kind, r.count) for r in caplog.records] == [("full", 1), ("too_many", 1), ("full", 250)]


def test_a_workers_line_comes_with_its_level(caplog):
    with caplog.at_level(logging.INFO):
        for line in ("INFO: it begins\n", "ERROR: it is odd\n", "\n", "Traceback:\n"):
            logged_of_worker(line)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "it begins"), ("ERROR", "it is odd"), ("WARNING", "Traceback:"),
    ]  # fmt: skip
