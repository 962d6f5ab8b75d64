"""The connection of stages and gateway, over the loopback address: both ends, in the clear and encrypted."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import pytest

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from conf.schema.stream import SourceConfig
from serve import link as serving
from serve.link import HELD, Connection, Link
from serve.tls import certificate
from stages.link import LONGEST_BODY, LONGEST_LINE, Door, Wire, connect
from tests.patience import PATIENT_S

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def secure():
    return certificate(ServeConfig(tls="auto"))


def links(made, secure=None) -> Link:
    """A link, in the clear or with a certificate of its own."""
    if not secure:
        return Link(HOST)
    digest = made.fingerprint.replace(":", "").lower()
    return Link(HOST, context=made.context(), digest=digest)


def runs(work) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENT_S))


class Guest:
    """Takes a connection and answers what it hears."""

    def __init__(self):
        self.heard: list[tuple[dict, bytes]] = []
        self.came, self.left = asyncio.Event(), asyncio.Event()
        self.connection: Connection | None = None

    async def take(self, connection: Connection) -> None:
        self.connection = connection
        self.came.set()
        while (message := await connection.receive()) is not None:
            self.heard.append(message)
            connection.send("echo", message[1], of=message[0]["kind"])
        self.left.set()


@asynccontextmanager
async def opened(made=None, secure=False):
    link = links(made, secure)
    await link.open()
    try:
        yield link
    finally:
        await link.close()
        assert not link.listening


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_stage_is_taken_and_messages_go_both_ways_whole(secure, encrypted):
    async def work():
        async with opened(secure, encrypted) as link:
            guest = Guest()
            address = link.expect(guest.take)
            wire = Wire(await asyncio.to_thread(connect, "x", address))
            bodies = [b"", b"\n{}\n" * 100, bytes(range(256)) * 4096]
            for index, body in enumerate(bodies):
                await asyncio.to_thread(wire.send, f"k{index}", body, text="ä\n\u2028")
                head, back = await asyncio.to_thread(wire.receive)
                assert (head["kind"], head["of"], back) == ("echo", f"k{index}", body)
            assert [head["text"] for head, _ in guest.heard] == ["ä\n\u2028"] * 3
            wire.close()
            await guest.left.wait()
            assert address.startswith("tls://" if encrypted else "tcp://")

    runs(work())


@pytest.mark.parametrize("encrypted", [False, True])
def test_both_directions_at_once_do_not_wait_for_each_other(secure, encrypted):
    """More than all buffers hold, sent by both ends before either would have to read."""
    count, body = 60, bytes(1 << 17)

    async def work():
        async with opened(secure, encrypted) as link:
            got, heard = [], []
            there, here = asyncio.Event(), asyncio.Event()

            async def take(connection):
                reading = asyncio.ensure_future(read(connection))
                for index in range(count):
                    connection.send("down", body, index=index)
                    await connection.writer.drain()
                await reading
                there.set()
                await here.wait()  # to return is to end the connection, with what it has not sent yet

            async def read(connection):
                while len(got) < count:
                    got.append((await connection.receive())[0]["index"])

            wire = Wire(await asyncio.to_thread(connect, "x", link.expect(take)))

            def listen():
                while len(heard) < count:
                    head, found = wire.receive()
                    assert found == body
                    heard.append(head["index"])

            with ThreadPoolExecutor(3) as threads:
                loop = asyncio.get_running_loop()
                listening = loop.run_in_executor(threads, listen)
                halves = [range(0, count, 2), range(1, count, 2)]
                sending = [loop.run_in_executor(threads, lambda h=h: [wire.send("up", body, index=i) for i in h])
                           for h in halves]  # fmt: skip
                await asyncio.gather(listening, *sending)
            await there.wait()
            here.set()
            assert heard == list(range(count)) and sorted(got) == list(range(count))
            assert [i for i in got if i % 2 == 0] == list(halves[0])
            wire.close()

    runs(work())


def test_a_secret_is_worth_something_once_and_nothing_when_forgotten():
    async def work():
        async with opened() as link:
            guest, other, kept = Guest(), Guest(), Guest()
            once, forgotten = link.expect(guest.take), link.expect(other.take)
            often = link.expect(kept.take, "f" * 32, once=False)
            first = Wire(await asyncio.to_thread(connect, "x", once))
            await guest.came.wait()
            second = Wire(await asyncio.to_thread(connect, "x", once))
            assert await asyncio.to_thread(second.receive) is None
            link.forget(forgotten)
            link.forget(forgotten)
            third = Wire(await asyncio.to_thread(connect, "x", forgotten))
            assert await asyncio.to_thread(third.receive) is None
            assert not other.came.is_set() and not guest.left.is_set()
            for _ in range(2):
                wire = Wire(await asyncio.to_thread(connect, "x", often))
                await kept.came.wait()
                kept.came.clear()
                wire.close()
            for wire in (first, second, third):
                wire.close()

    runs(work())


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(40), b"\xff" * 32, b"0" * 32, b"0" * 31])
def test_strangers_are_let_go_and_leave_nothing(said, monkeypatch):
    monkeypatch.setattr(serving, "TOKEN_S", 0.05)

    async def work():
        async with opened() as link:
            guest = Guest()
            address = link.expect(guest.take)
            reader, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
            assert not link._strangers
            wire = Wire(await asyncio.to_thread(connect, "x", address))
            await guest.came.wait()
            wire.close()

    runs(work())


@pytest.mark.parametrize("limit", ["STRANGERS", "OF_ONE"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_crowd_that_says_nothing_keeps_no_stage_out(secure, encrypted, limit, monkeypatch):
    """The oldest goes; before TLS, too. No time has to pass."""
    monkeypatch.setattr(serving, limit, 4)
    monkeypatch.setattr(serving, "TOKEN_S", 60.0)
    monkeypatch.setattr(serving, "HANDSHAKE_S", 60.0)

    async def work():
        async with opened(secure, encrypted) as link:
            crowd = [await asyncio.open_connection(HOST, link.port) for _ in range(9)]
            for reader, _ in crowd[:5]:
                with suppress(OSError):
                    assert await reader.read() == b""
            assert len(link._strangers) <= 4
            guest = Guest()
            wire = Wire(await asyncio.to_thread(connect, "x", link.expect(guest.take)))
            await guest.came.wait()
            assert not crowd[-1][0].at_eof()
            more = [await asyncio.open_connection(HOST, link.port) for _ in range(9)]
            with suppress(OSError):
                assert await more[0][0].read() == b""
            assert not guest.left.is_set(), "who has said its secret is no stranger"
            for _, one in (*crowd, *more):
                one.close()
            wire.close()

    runs(work())


def test_one_address_does_not_take_the_places_of_others(monkeypatch):
    monkeypatch.setattr(serving, "OF_ONE", 2)

    async def work():
        async with opened() as link:
            other = await asyncio.open_connection(HOST, link.port, local_addr=("127.0.0.2", 0))
            crowd = [await asyncio.open_connection(HOST, link.port) for _ in range(5)]
            for reader, _ in crowd[:3]:
                with suppress(OSError):
                    assert await reader.read() == b""
            guest = Guest()
            other[1].write(link.expect(guest.take).rpartition("/")[2].encode())
            await guest.came.wait()
            for _, one in (*crowd, other):
                one.close()

    runs(work())


def test_an_ipv6_address_can_be_read_by_stages():
    async def work():
        link, guest = Link("::1"), Guest()
        try:
            await link.open()
        except OSError:
            pytest.skip("this machine has no IPv6")
        address = link.expect(guest.take)
        assert address.startswith(f"tcp://[::1]:{link.port}/")
        SourceConfig(session=address)
        wire = Wire(await asyncio.to_thread(connect, "source.session", address))
        await guest.came.wait()
        wire.close()
        await link.close()

    runs(work())


def test_a_door_at_an_ipv6_address():
    try:
        door = Door("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    wire = connect("sink.reader", door.address)
    assert door.wait(lambda: False)
    wire.close()
    door.close()


@pytest.mark.parametrize("host", ["::1", "[::1", "::1]", "[]", "a:b", "", "[a/b]"])
def test_what_is_no_host_is_no_address(host):
    with pytest.raises(UserError, match="is no address"):
        SourceConfig(session=f"tcp://{host}:9000/secret")
    SourceConfig(session="tcp://[fe80::1%eth0]:9000/secret")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_stages_are_not_told_to_connect_to_every_address(host):
    with pytest.raises(UserError, match=r"serve\.link_host=.*no address that stages can connect to"):
        ServeConfig(link_host=host)


def line(**head) -> bytes:
    return json.dumps(head).encode() + b"\n"


@pytest.mark.parametrize(
    "said",
    [
        b"not json\n",
        b"[]\n",
        b'"bytes"\n',
        line(kind="x"),
        line(kind="x", bytes=-1),
        line(kind="x", bytes=LONGEST_BODY + 1),
        line(kind="x", bytes="many"),
        line(kind="x", bytes=10) + b"short",
        b"x" * (LONGEST_LINE + 100) + b"\n",
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
    ],
)
def test_what_is_no_message_ends_the_connection_at_either_end(said):
    async def at_the_gateway():
        async with opened() as link:
            guest = Guest()
            token = link.expect(guest.take).rpartition("/")[2]
            _, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(token.encode() + line(kind="good", bytes=0) + said)
            writer.write_eof()
            await guest.left.wait()
            assert [head["kind"] for head, _ in guest.heard] == ["good"]
            writer.close()

    runs(at_the_gateway())
    one, two = socket.socketpair()
    wire = Wire(one)
    two.sendall(line(kind="good", bytes=0) + said)
    two.shutdown(socket.SHUT_WR)
    assert wire.receive()[0]["kind"] == "good"
    assert wire.receive() is None
    wire.close()
    two.close()


def test_a_message_may_come_in_any_pieces():
    one, two = socket.socketpair()
    wire, found = Wire(one), []
    message = line(kind="a", bytes=5) + b"12345" + line(kind="b", bytes=0)
    thread = threading.Thread(target=lambda: found.extend([wire.receive(), wire.receive()]))
    thread.start()
    for index in range(len(message)):
        two.sendall(message[index : index + 1])
    thread.join(PATIENT_S)
    assert [(head["kind"], body) for head, body in found] == [("a", b"12345"), ("b", b"")]
    wire.close()
    two.close()


@pytest.mark.parametrize("waits", ["receive", "send"])
def test_closing_wakes_who_waits_in_another_thread(waits):
    one, two = socket.socketpair()
    wire, came = Wire(one), []

    def act():
        try:
            came.append(wire.receive() if waits == "receive" else [wire.send("x", bytes(1 << 22)) for _ in range(9)])
        except OSError as error:
            came.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    wire.close()
    thread.join(PATIENT_S)
    assert not thread.is_alive() and (came == [None] if waits == "receive" else isinstance(came[0], OSError))
    with pytest.raises(OSError):
        wire.send("x")
    assert wire.receive() is None
    wire.close()
    two.close()


def test_a_stage_that_takes_nothing_is_let_go():
    async def work():
        async with opened() as link:
            guest = Guest()
            wire = Wire(await asyncio.to_thread(connect, "x", link.expect(guest.take)))
            await guest.came.wait()
            for _ in range(2 * HELD // (1 << 20) + 20):
                guest.connection.send("x", bytes(1 << 20))
            await guest.left.wait()
            guest.connection.send("x")  # nobody is there: nothing happens
            wire.close()

    runs(work())


def test_who_has_another_certificate_is_not_spoken_to(secure):
    async def work():
        async with opened(secure, True) as link:
            guest = Guest()
            address = link.expect(guest.take)
            wrong = address.partition("#")[0] + "#" + "0" * 64
            with pytest.raises(UserError, match="nobody answers there") as caught:
                await asyncio.to_thread(connect, "source.session", wrong)
            assert address.rpartition("/")[2][:32] not in str(caught.value)
            assert not guest.came.is_set()
            wire = Wire(await asyncio.to_thread(connect, "x", address))
            await guest.came.wait()
            wire.close()

    runs(work())


def test_one_that_speaks_no_tls_is_let_go(secure):
    async def work():
        async with opened(secure, True) as link:
            reader, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(b"0" * 32)
            with suppress(OSError):  # reset, or ended with an alert
                assert len(await reader.read()) < 32
            writer.close()
            context = ssl.create_default_context()
            with pytest.raises(ssl.SSLError):
                await asyncio.open_connection(HOST, link.port, ssl=context, server_hostname=HOST)

    runs(work())


def test_one_that_does_not_finish_its_handshake_is_let_go(secure, monkeypatch):
    monkeypatch.setattr(serving, "HANDSHAKE_S", 0.05)

    async def work():
        async with opened(secure, True) as link:
            reader, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(b"\x16\x03\x01")  # a record of a handshake begins
            with suppress(OSError):
                assert await reader.read() == b""
            writer.close()

    runs(work())


def test_closing_lets_go_of_everyone():
    async def work():
        link, guest = Link(HOST), Guest()
        await link.open()
        wire = Wire(await asyncio.to_thread(connect, "x", link.expect(guest.take)))
        await guest.came.wait()
        await link.close()
        assert await asyncio.to_thread(wire.receive) is None and not link.listening
        wire.close()
        await link.close()

    runs(work())
