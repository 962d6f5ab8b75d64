"""The one port that stages connect to: who says a secret that is expected is taken for whoever it was made for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from conf.paths import ADDRESSES
from stages.link import LONGEST_BODY, LONGEST_LINE, TOKEN_S

TOKEN_BYTES = 16
STRANGERS = 64
"""Connections that have not said their secret yet, at most."""
HANDSHAKE_S = 5.0
"""Longest TLS handshake; whoever has not come so far is no stranger yet, and not counted."""
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
        if self.writer.transport.get_write_buffer_size() > HELD:
            self.close()
            return
        line = json.dumps({"kind": kind, "bytes": len(body), **head}, separators=(",", ":")).encode() + b"\n"
        self.writer.write(line + body)

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
        host: the address that is listened at.
        port: 0: a free one.
        known: the address by which the machines of stages know this one; None: `host`.
        context: of TLS; None: in the clear.
        digest: of its certificate, SHA-256 in hexadecimal digits.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        known: str | None = None,
        context: ssl.SSLContext | None = None,
        digest: str = "",
    ):
        self._where, self._known = (host, port), known or host
        self._context, self._digest = context, digest
        self._expected: dict[str, tuple[Take, bool]] = {}
        self._server: asyncio.Server | None = None
        self._strangers = 0
        self._taken: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the port is another's.
        """
        times = {"ssl_handshake_timeout": HANDSHAKE_S} if self._context else {}
        self._server = await asyncio.start_server(
            self._come, *self._where, ssl=self._context, limit=LONGEST_LINE, **times
        )

    @property
    def port(self) -> int:
        """That is listened at."""
        return self._server.sockets[0].getsockname()[1]

    @property
    def listening(self) -> bool:
        """Whether stages can connect."""
        return self._server is not None and self._server.is_serving()

    def expect(self, take: Take, token: str | None = None, once: bool = True) -> str:
        """An address for one who is to connect; `take` is awaited with the connection, which ends with it.

        Args:
            token: the secret, 32 hexadecimal digits; None: a new one.
            once: whether the secret is worth nothing once it was said.
        """
        token = token or secrets.token_hex(TOKEN_BYTES)
        self._expected[token] = take, once
        scheme, digest = (ADDRESSES[1], f"#{self._digest}") if self._context else (ADDRESSES[0], "")
        return f"{scheme}{self._known}:{self.port}/{token}{digest}"

    def forget(self, address: str) -> None:
        """Nobody is expected at an address any more."""
        self._expected.pop(address.rpartition("/")[2].partition("#")[0], None)

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, take = Connection(reader, writer), None
        if self._strangers < STRANGERS:
            self._strangers += 1
            with contextlib.suppress(OSError, EOFError, TimeoutError, UnicodeDecodeError):
                token = (await asyncio.wait_for(reader.readexactly(2 * TOKEN_BYTES), TOKEN_S)).decode()
                take, once = self._expected.get(token, (None, False))
                if take and once:
                    del self._expected[token]
            self._strangers -= 1
        try:
            if take:
                task = asyncio.current_task()
                self._taken.add(task)
                task.add_done_callback(self._taken.discard)
                await take(connection)
        finally:
            connection.close()

    async def close(self) -> None:
        """Listen no more, and let go of everyone."""
        if self._server is not None:
            self._server.close()
            for task in list(self._taken):
                task.cancel()
            await asyncio.gather(*self._taken, return_exceptions=True)
            await self._server.wait_closed()
