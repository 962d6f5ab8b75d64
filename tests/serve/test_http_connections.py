"""Connections that wait, keep and babble: what they cost is bounded, and none of them makes a fault of ours."""

import asyncio
import logging
import random
import socket
import ssl
import struct

import pytest
from websockets.asyncio.client import connect

from serve import connections, server, tls
from serve.limits import Crowd
from tests.patience import PATIENT_S
from tests.serve.played import JSON, Gateway, ask, opened


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog):
    """By the loop or by uvicorn: whatever strangers send is no fault."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


@pytest.fixture
def hurried(monkeypatch):
    """Whoever is late is late at once."""
    monkeypatch.setattr(server, "LOOK_S", 0.02)
    for name in ("HEAD_S", "STALLED_S", "CLOSING_S"):
        monkeypatch.setattr(connections, name, 0.2)


def tried(tmp_path, talk, crowd=None, **settings):
    """What `talk(port, gateway)` returns, in time."""

    async def once():
        gateway = Gateway(tmp_path, **settings)
        async with asyncio.timeout(PATIENT_S), opened(gateway, crowd=crowd) as port:
            return await talk(port, gateway)

    return asyncio.run(once())


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"


@pytest.mark.parametrize("said", [
    b"", b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: y", WHOLE + b"\r\n",
    WHOLE + b"\r\nGET /h", WHOLE + b"Content-Length: 100\r\n\r\nx",
])  # fmt: skip
def test_a_head_that_does_not_come_is_not_waited_for(tmp_path, hurried, said):
    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said.replace(b"PORT", str(port).encode()))
        got = await reader.read()  # to its end, or the test runs out of time
        writer.close()
        return got

    assert tried(tmp_path, talk).count(b"HTTP/1.1 200") == said.count(b"\r\n\r\n")


def test_byte_after_byte_is_not_waited_for_either(tmp_path, hurried):
    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        end = asyncio.create_task(reader.read())
        sent = 0
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        while not end.done():
            writer.write(b"y")
            sent += 1
            await asyncio.sleep(0.005)
        writer.close()
        with pytest.raises(ConnectionError):
            await end
            raise ConnectionError
        return sent

    assert tried(tmp_path, talk) > 1


def test_an_answer_that_nobody_takes_is_given_up(tmp_path, hurried):
    async def talk(port, _):
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        async with connect(
            f"ws://127.0.0.1:{port}/v1/realtime/video", proxy=None, max_queue=1, ping_interval=None
        ) as one:
            one.transport.pause_reading()

            async def flood():
                while True:
                    await one.send("x" * 500_000)

            flooding = asyncio.create_task(flood())
            flooding.add_done_callback(lambda task: ended.set_result(task.exception()))
            return await ended

    assert tried(tmp_path, talk) is not None


def test_patience_begins_anew_with_each_state():
    patience = connections.Patience()
    assert [patience(state, now) for now, state in enumerate("aabbbac")] == [0, 1, 0, 1, 2, 0, 0]


def test_requests_one_after_the_other_are_no_wait(tmp_path, monkeypatch):
    """Each look finds the connection idle, and each time it has answered something since."""
    monkeypatch.setattr(server, "LOOK_S", 1000)

    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        made = []
        original = connections.Connection.connection_made
        for now in range(0, 100, 7):
            writer.write(request)
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(15)
            made = [c for c in watched if not c.transport.is_closing()]
            assert len(made) == 1 and not made[0].overdue(float(now))
        assert original and made[0].overdue(now + connections.HEAD_S + 1)
        writer.close()

    watched = []

    def seen(self, transport):
        watched.append(self)
        connected(self, transport)

    connected = connections.Connection.connection_made
    monkeypatch.setattr(connections.Connection, "connection_made", seen)
    tried(tmp_path, talk)


def test_only_so_many_connections_of_one_address_and_in_all(tmp_path):
    async def talk(port, _):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        held.pop()[1].close()
        while len(crowd) > 2:
            await asyncio.sleep(0)
        assert (await ask(port, "GET", "/healthz")).status == 200
        for _, writer in held:
            writer.close()

    crowd = Crowd(most=10, each=3)
    tried(tmp_path, talk, crowd)
    assert len(crowd) == 0
    crowd = Crowd(most=3, each=10)
    tried(tmp_path, talk, crowd)
    assert len(crowd) == 0


def test_a_socket_is_counted_until_it_ends(tmp_path):
    crowd = Crowd()

    async def talk(port, _):
        async with connect(f"ws://127.0.0.1:{port}/v1/realtime/video", proxy=None) as one:
            await one.send("x")
            await one.recv()
            assert len(crowd) == 1
        while len(crowd):
            await asyncio.sleep(0)

    tried(tmp_path, talk, crowd)


def masked(opcode: int, data: bytes, fin: bool = True) -> bytes:
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    return bytes([0x80 * fin | opcode]) + length + b"\0\0\0\0" + data


HANDSHAKE = (
    "GET /v1/realtime/video HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("frames, code", [
    (masked(1, b"\xff\xfe"), 1007), (masked(1, b"a", fin=False) + masked(0, b"\xff"), 1007),
    (masked(1, b"", fin=False) + masked(0, b"", fin=False) * 2000, 1009),
    (b"\x82\xff" + struct.pack("!Q", 1 << 40) + b"\0\0\0\0", 1009), (b"\x81\x03abc", 1002), (masked(3, b"x"), 1002),
    (masked(0, b"x"), 1002), (b"\xc1\x80\0\0\0\0", 1002), (masked(9, b"x" * 126), 1002), (masked(8, b"\x00"), 1002),
    (masked(8, struct.pack("!H", 1005)), 1002), (masked(8, struct.pack("!H", 1000)), 1000),
])  # fmt: skip
def test_frames_that_are_none_end_the_socket_with_its_code(tmp_path, frames, code):
    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE.format(port=port).encode())
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(frames)
        got = await reader.read()
        writer.close()
        return got

    got = tried(tmp_path, talk)
    while got and got[0] != 0x88:  # whatever was said before
        got = got[2 + got[1] :]
    assert struct.unpack("!H", got[2:4]) == (code,)


def test_what_is_said_to_a_socket_that_was_ended_is_no_fault(tmp_path):
    """Frames that are none end a connection before the application knows."""

    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE.format(port=port).encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(masked(1, b"hello") + masked(1, b"\xff"))  # the first would be said back
        got = await reader.read()
        writer.close()
        return got

    assert b"\x03\xef" in tried(tmp_path, talk)


@pytest.mark.parametrize("old, new", [
    ("websocket\r\n", "websocket\r\n" + "X: y\r\n" * 200), ("websocket\r\n", f"websocket\r\nX: {'y' * 9000}\r\n"),
    ("GET", "POST"), ("13\r\n", "12\r\n"), ("dGhl", "!!!!"), ("Sec-WebSocket-Version: 13\r\n", ""), ("13\r\n", "x\r\n"),
    ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), ("/v1/realtime/video", "/%ff%00"),
    ("13\r\n", "13\r\nSec-WebSocket-Protocol: ,,;\xe9\r\n"), ("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: dGhl, "),
])  # fmt: skip
def test_handshakes_that_are_none_are_refused(tmp_path, old, new):
    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE.replace(old, new).format(port=port).encode("latin-1"))
        got = await reader.read()
        writer.close()
        return got

    assert 400 <= int(tried(tmp_path, talk).split()[1]) < 500


def test_what_is_no_http_is_refused_whatever_it_is(tmp_path):
    """A seeded thousand: heads that are cut, flipped, doubled and mixed, two on each connection."""
    post = b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Type: application/json\r\n"
    heads = [
        WHOLE + b"\r\n",
        post + b"Content-Length: 2\r\n\r\n{}",
        post + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        HANDSHAKE.replace("{port}", "PORT").encode() + masked(1, b"hello"),
    ]
    chance = random.Random(5)

    def made() -> bytes:
        data = bytearray(chance.choice(heads))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(data))
            kind = chance.randrange(4)
            if kind == 0:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.randrange(8)]
            elif kind == 2:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(8)))
            else:
                data[at:at] = data[at : at + chance.randrange(40)]
        return bytes(data)

    async def one(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((made() + made()).replace(b"PORT", str(port).encode()))
        writer.write_eof()
        try:
            got = await reader.read()
        except ConnectionError:
            got = b""
        writer.close()
        return got

    async def talk(port, _):
        found = []
        for _ in range(20):
            found += await asyncio.gather(*(one(port) for _ in range(25)))
        assert (await ask(port, "GET", "/healthz")).status == 200
        return found

    answers = tried(tmp_path, talk, posts_per_minute=100_000)
    assert not [answer for answer in answers if b"HTTP/1.1 5" in answer]
    assert sum(b"HTTP/1.1 4" in answer for answer in answers) > 50
    assert sum(b"HTTP/1.1 20" in answer for answer in answers) > 50


def test_garbage_in_a_body_while_it_is_answered_is_no_fault(tmp_path):
    async def talk(port, gateway):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n1\r\n{{\r\n".encode())
        await asyncio.sleep(0.02)
        writer.write(b"no number\r\n")
        got = await reader.read()
        writer.close()
        return got

    assert b" 400 " in tried(tmp_path, talk)


def test_headers_that_come_at_once_are_counted_too(tmp_path):
    async def talk(port, _):
        return [(await ask(port, "GET", "/healthz", {"X": "y" * size})).status for size in (60_000, 70_000)]

    good, bad = tried(tmp_path, talk)
    assert good == 200 and bad in (400, 413)


def test_over_tls_and_without_it(tmp_path):
    async def talk():
        gateway = Gateway(tmp_path, tls="auto")
        made = tls.certificate(gateway.serve, tmp_path / "kept")
        crowd = Crowd()
        async with asyncio.timeout(PATIENT_S), opened(gateway, made.context(), crowd) as port:
            trusting = ssl.create_default_context(cafile=made.cert)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
            writer.write(f"GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
            assert b" 200 " in await reader.read()
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
            while len(crowd):
                await asyncio.sleep(0)

    asyncio.run(talk())


def test_a_handshake_of_tls_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.05)

    async def talk():
        gateway = Gateway(tmp_path, tls="auto")
        context = tls.certificate(gateway.serve, tmp_path / "kept").context()
        crowd = Crowd()
        async with asyncio.timeout(PATIENT_S), opened(gateway, context, crowd) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            while len(crowd):
                await asyncio.sleep(0)

    asyncio.run(talk())


def test_a_body_whose_sender_goes_is_no_fault(tmp_path):
    async def talk(port, gateway):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 10\r\n"
        writer.write(f"{head}Content-Type: {JSON['Content-Type']}\r\n\r\n{{".encode())
        await writer.drain()
        writer.transport.abort()
        assert (await ask(port, "GET", "/healthz")).status == 200
        assert gateway.wanted is None

    tried(tmp_path, talk)


def test_who_holds_places_without_a_word_keeps_nobody_out(tmp_path):
    """The oldest on which nothing is asked goes; who has been asked something stays, and so does a WebSocket."""

    async def talk(port, _):
        async with connect(f"ws://127.0.0.1:{port}/v1/realtime/video", proxy=None) as one:
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for _, writer in silent:
                writer.write(b"GET /")
            assert (await ask(port, "GET", "/healthz")).status == 200
            assert await silent[0][0].read() == b"" and not silent[2][0].at_eof()
            pong = await one.ping()
            await pong
            for _, writer in silent:
                writer.close()

    tried(tmp_path, talk, Crowd(each=4))


def test_a_burst_of_them_does_not_either(tmp_path):
    """Taken all at once, before any of them is looked at."""

    async def talk(port, _):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        found = await ask(port, "GET", "/healthz")
        for one in silent:
            one.close()
        return found.status

    assert tried(tmp_path, talk, Crowd(each=4)) == 200


def test_what_is_no_http_1_is_answered_once(tmp_path):
    async def talk(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        got = await reader.read()
        writer.close()
        return got

    got = tried(tmp_path, talk)
    assert got.count(b"HTTP/1.1 ") == 1 and b"HTTP/2.0 is not spoken" in got


def test_a_websocket_that_is_asked_for_as_a_page_says_what_it_is(tmp_path):
    async def talk(port, _):
        return await ask(port, "GET", "/v1/realtime/video")

    told = tried(tmp_path, talk)
    assert told.status == 426 and told.body["type"] == "upgrade_required"
