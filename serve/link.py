"""The one port that stages connect to: who says a secret that is expected is taken for whoever it was made for."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from conf.paths import ADDRESSES
from serve.limits import SCARCE, site
from stages.link import LONGEST_BODY, LONGEST_LINE, TOKEN_S, bracketed

TOKEN_BYTES = 16
STRANGERS, OF_ONE = 256, 64
"""Connections that have not said their secret yet, at most; and of one address. The oldest goes when one more comes:
stages say theirs at once, so who has waited longest is none."""
HANDSHAKE_S = 2.0
"""Longest TLS handshake."""
SCARCE_S = 1.0
"""Between two tries to take a connection where descriptors are short."""
HELD = 1 << 22
"""Bytes that may wait for a stage to take them; one that lets more wait is gone."""

Take = Callable[["Connection"], Awaitable[None]]


class Connection:
    """Messages with a stage: a line of JSON `{"kind": ..., "bytes": n}` and n bytes behind it (see `stages.link`)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    def send(self, kind: str, body: bytes = b"", **head: Any) -> None:
        """Send a message without waiting. A stage that takes nothing is let go of."""
        if self.writer.transport.is_closing():
            return
        if self.behind > HELD:
            self.close()
            return
        line = json.dumps({"kind": kind, "bytes": len(body), **head}, separators=(",", ":")).encode() + b"\n"
        self.writer.write(line + body)

    @property
    def behind(self) -> int:
        """Bytes that wait for the stage to take them."""
        return self.writer.transport.get_write_buffer_size()

    async def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message; None: there will be none."""
        try:
            head = json.loads(await self.reader.readuntil(b"\n"))
            size = int(head["bytes"])
            if not 0 <= size <= LONGEST_BODY:
                return None
            return head, await self.reader.readexactly(size)
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, asyncio.LimitOverrunError):
            return None

    def close(self) -> None:
        """End it."""
        self.writer.transport.abort()


class Link:
    """The port.

    Args:
        host: the address that is listened at, as the machines of stages know it.
        port: 0: a free one.
        context: of TLS; None: in the clear.
        digest: of its certificate, SHA-256 in hexadecimal digits.
    """

    def __init__(self, host: str, port: int = 0, context: ssl.SSLContext | None = None, digest: str = ""):
        self._host, self._port = host, port
        self._context, self._digest = context, digest
        self._expected: dict[str, tuple[Take, bool]] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task | None = None
        self._strangers: dict[asyncio.Task, str] = {}
        """With whose they are (`serve.limits.site`), the oldest first."""
        self._tasks: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the port is another's.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        self._listener = socket.create_server(where, family=family, backlog=STRANGERS)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    @property
    def port(self) -> int:
        """That is listened at."""
        return self._listener.getsockname()[1]

    @property
    def listening(self) -> bool:
        """Whether stages can connect."""
        return self._accepting is not None and not self._accepting.done()

    def expect(self, take: Take, token: str | None = None, once: bool = True) -> str:
        """An address for one who is to connect; `take` is awaited with the connection, which ends with it.

        Args:
            token: the secret, 32 hexadecimal digits; None: a new one.
            once: whether the secret is worth nothing once it was said.
        """
        token = token or secrets.token_hex(TOKEN_BYTES)
        self._expected[token] = take, once
        scheme, digest = (ADDRESSES[1], f"#{self._digest}") if self._context else (ADDRESSES[0], "")
        return f"{scheme}{bracketed(self._host)}:{self.port}/{token}{digest}"

    def forget(self, address: str) -> None:
        """Nobody is expected at an address any more."""
        self._expected.pop(address.rpartition("/")[2].partition("#")[0], None)

    async def _accept(self, listener: socket.socket) -> None:
        """Take whoever connects, until it is cancelled. Counted before TLS: a handshake is work."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, address = await loop.sock_accept(listener)
            except OSError as error:  # or the peer was gone before it was taken
                await asyncio.sleep(SCARCE_S if error.errno in SCARCE else 0)
                continue
            caller = site(address[0])
            self._make_room(caller)
            task = asyncio.create_task(self._come(taken))
            self._strangers[task] = caller
            self._tasks.add(task)
            task.add_done_callback(lambda task, taken=taken: self._gone(task, taken))

    def _make_room(self, caller: str) -> None:
        """Let go of a caller's oldest stranger, or of the oldest of all, where there are too many."""
        own = [task for task, other in self._strangers.items() if other == caller]
        oldest = own[0] if len(own) >= OF_ONE else next(iter(self._strangers), None)
        if len(own) >= OF_ONE or len(self._strangers) >= STRANGERS:
            del self._strangers[oldest]
            oldest.cancel()

    def _gone(self, task: asyncio.Task, taken: socket.socket) -> None:
        self._tasks.discard(task)
        self._strangers.pop(task, None)
        taken.close()

    async def _come(self, taken: socket.socket) -> None:
        """Hear who one is, and pass it on to whoever expects it."""
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        try:
            connection = Connection(reader, await self._writer(taken, reader))
        except OSError:  # a handshake that came to nothing
            return
        try:
            if take := await self._expecting(reader):
                self._strangers.pop(asyncio.current_task(), None)
                await take(connection)
        finally:
            connection.close()

    async def _writer(self, taken: socket.socket, reader: asyncio.StreamReader) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        times = {"ssl_handshake_timeout": HANDSHAKE_S} if self._context else {}
        made = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: made, taken, ssl=self._context, **times)
        return asyncio.StreamWriter(transport, made, reader, loop)

    async def _expecting(self, reader: asyncio.StreamReader) -> Take | None:
        """Who expects one, by the secret that it says; None: nobody does."""
        try:
            token = (await asyncio.wait_for(reader.readexactly(2 * TOKEN_BYTES), TOKEN_S)).decode()
        except (OSError, EOFError, TimeoutError, UnicodeDecodeError):
            return None
        take, once = self._expected.get(token, (None, False))
        if take and once:
            del self._expected[token]
        return take

    async def close(self) -> None:
        """Listen no more, and let go of everyone."""
        if self._accepting is not None:
            self._accepting.cancel()
            ends = [self._accepting, *self._tasks]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            self._listener.close()
