"""The port itself: had or not had, told of, and given back."""

import asyncio
import socket

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve import server
from tests.patience import PATIENT_S
from tests.serve import played
from tests.serve.played import JSON, Gateway, ask


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(server, "application", played.application)
    monkeypatch.setattr(server, "POLL_S", 0.005)


def test_a_port_that_is_taken_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"serve.port={port}: is taken by another program; .*serve.port=0"):
            server.bound(ServeConfig(port=port))


@pytest.mark.parametrize(
    "host, words", [("no.such.name.invalid", "no address"), ("203.0.113.7", "no address of this machine")]
)
def test_a_host_that_is_not_ours_is_told_in_one_line(host, words):
    with pytest.raises(UserError, match=f"serve.host={host}: is {words}"):
        server.bound(ServeConfig(host=host, port=0, token="0123456789abcdef"))


def served(gateway, talk):
    """Serve until `talk(listening, stop)` has ended and the server has, too."""

    async def both():
        ready = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(PATIENT_S):
            task = asyncio.create_task(server.serve(gateway, ready.set_result))
            listening = await ready
            try:
                return await talk(listening, task)
            finally:
                gateway.draining.set()
                await task

    gateway.serve.port = 0
    return asyncio.run(both())


@pytest.mark.parametrize(
    "host, shown", [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("0.0.0.0", "localhost")]
)
def test_the_real_port_is_told_and_answers(tmp_path, host, shown):
    async def talk(listening, _):
        assert listening.address == f"http://{shown}:{listening.port}" and listening.fingerprint is None
        assert (await ask(listening.port, "GET", "/healthz")).status == 200
        return listening.port

    port = served(Gateway(tmp_path, host=host, token="0123456789abcdef"), talk)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_nothing_is_held_back_to_be_sent_together(tmp_path, monkeypatch):
    """A small packet of sound leaves at once, and does not wait until the peer has acknowledged the one before."""
    seen = []
    made = server.Connection.connection_made

    def look(self, transport):
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(server.Connection, "connection_made", look)

    async def talk(listening, _):
        await ask(listening.port, "GET", "/healthz")

    served(Gateway(tmp_path), talk)
    assert seen and all(seen)


def test_it_drains_until_the_last_session_has_ended(tmp_path):
    gateway = Gateway(tmp_path, drain_s=1000)

    async def talk(listening, task):
        opened = (await ask(listening.port, "POST", "/v1/sessions", JSON, {})).body
        gateway.draining.set()
        for _ in range(20):
            await asyncio.sleep(server.POLL_S)
        assert not task.done()
        gateway.unready = ["draining"]
        assert (await ask(listening.port, "GET", "/readyz")).status == 503  # it still answers
        secret = {"X-Session-Secret": opened["secret"]}
        await ask(listening.port, "DELETE", f"/v1/sessions/{opened['id']}", secret)
        await task

    served(gateway, talk)


def test_it_does_not_drain_for_ever_and_sockets_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "LAST_S", 0.05)
    gateway = Gateway(tmp_path, drain_s=0.05)

    async def talk(listening, task):
        await ask(listening.port, "POST", "/v1/sessions", JSON, {})
        async with connect(f"ws://127.0.0.1:{listening.port}/v1/realtime/video", proxy=None) as one:
            gateway.draining.set()
            with pytest.raises(ConnectionClosed) as caught:
                await one.recv()
            await task
        return caught.value.rcvd.code

    assert served(gateway, talk) in (1001, 1012)


def test_who_watches_what_does_not_end_is_told_the_end_first(tmp_path, monkeypatch):
    """The words that ending a session leaves to be sent come before the port's own good-bye."""
    monkeypatch.setattr(server, "LAST_S", 0.05)
    gateway = Gateway(tmp_path, drain_s=0.05)

    async def talk(listening, task):
        await ask(listening.port, "POST", "/v1/sessions", JSON, {})
        (session,) = gateway.sessions
        gateway.draining.set()
        await task
        return session.stopped

    assert served(gateway, talk) == ["drained"]


def test_with_a_certificate_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    async def talk(listening, _):
        assert listening.address.startswith("https://127.0.0.1:") and len(listening.fingerprint) == 95

    served(Gateway(tmp_path, tls="auto"), talk)
