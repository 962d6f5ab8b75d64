"""The port: who is let in, and how it ends.

uvicorn's protocols are used, not its server: connections are counted when they are taken, before TLS, each step has its
time, and signals are left to whoever runs all this.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve import tls
from serve.app import application
from serve.connections import MESSAGE_BYTES, Connection
from serve.limits import CONNECTIONS, HEAD_BYTES, SCARCE, Crowd, proxied, site
from serve.refusals import refused

LOG = logging.getLogger(__name__)

BACKLOG = 128
KEPT_S = 15
"""How long a connection without a request is kept for another one."""
HANDSHAKE_S, LOOK_S, LAST_S, WORDS_S = 10.0, 1.0, 5.0, 1.0
"""Longest TLS handshake, time between two looks for who is overdue, time to say good-bye in, and for a session's last
words before it."""
POLL_S = 0.05
RULES = {
    errno.EADDRINUSE: ("port", "is taken by another program", "give another one, or serve.port=0 for a free one"),
    errno.EACCES: ("port", "may be opened by root only", "give one from 1024"),
    errno.EADDRNOTAVAIL: ("host", "is no address of this machine", "use 127.0.0.1, or 0.0.0.0 for all it has"),
}


class Listening(NamedTuple):
    """Where a server is.

    Attributes:
        address: for a browser on this machine, such as `http://127.0.0.1:8080`.
        port: the real one.
        fingerprint: of a certificate, as browsers show it; None: plain HTTP.
    """

    address: str
    port: int
    fingerprint: str | None


def bound(serve: ServeConfig) -> socket.socket:
    """A socket that listens at `serve.host` and `serve.port`.

    Raises:
        UserError: it cannot be had.
    """
    try:
        found = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        rule, remedy = "is no address, nor a name that is known here", "use 127.0.0.1, or 0.0.0.0 for all it has"
        raise UserError(f"serve.host={serve.host}", rule, remedy) from error
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)  # by its protocol asyncio knows that nothing is to be held back
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and where[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        name, rule, remedy = RULES.get(error.errno, ("host", f"cannot be used ({error.strerror})", "use 127.0.0.1"))
        raise UserError(f"serve.{name}={getattr(serve, name)}", rule, remedy) from error
    listener.setblocking(False)
    return listener


async def serve(gateway: Any, on_ready: Callable[[Listening], None], listener: socket.socket | None = None) -> None:
    """Serve until `gateway.draining` (an asyncio.Event) is set, and the last session or `serve.drain_s` is over.

    While it drains it still answers: probes are told so, and viewers that were cut off may come back. That no session
    begins is the gateway's affair.

    Args:
        gateway: whose sessions they are.
        on_ready: called once people can connect.
        listener: from `bound`; None: made here, first of all.

    Raises:
        UserError: the port cannot be had, or the certificate cannot be used.
    """
    settings: ServeConfig = gateway.serve
    listener = listener or bound(settings)
    try:
        certificate = tls.certificate(settings)
        context = certificate.context() if certificate else None
        port = Port(application(gateway), listener, context, _crowd(settings))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(port.accept()), tasks.create_task(port.watch())]
            on_ready(_listening(settings, listener, certificate))
            await gateway.draining.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.drain_s + LAST_S):
                    await _empty(gateway)
            for session in gateway.sessions:  # whose workers do nothing any more
                session.abandon("drained")
            for task in running:
                task.cancel()
        await port.close()
    finally:
        listener.close()


async def _empty(gateway: Any) -> None:
    while any(session.state != "ended" for session in gateway.sessions):
        await asyncio.sleep(POLL_S)


def _crowd(settings: ServeConfig) -> Crowd:
    """No more connections than half of what may be open: stages, media and files want theirs."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Crowd(min(CONNECTIONS, most // 2) if most > 0 else CONNECTIONS, exempt=partial(proxied, serve=settings))


def _listening(settings: ServeConfig, listener: socket.socket, certificate: tls.Certificate | None) -> Listening:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "localhost"
    elif settings.host == "localhost":
        host = settings.host
    elif address.version == 6:
        host = f"[{host}]"
    scheme = "https" if certificate else "http"
    return Listening(f"{scheme}://{host}:{port}", port, certificate.fingerprint if certificate else None)


class Port:
    """A listening socket and all that came through it.

    Args:
        app: what answers.
        listener: not blocking.
        context: of TLS; None: in the clear.
        crowd: who may come.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, context: ssl.SSLContext | None, crowd: Crowd):
        self._config = Config(
            app, interface="asgi3", http=Connection, lifespan="off", log_config=None, log_level=None,
            access_log=False, proxy_headers=False, server_header=False, date_header=False,
            timeout_keep_alive=KEPT_S, h11_max_incomplete_event_size=HEAD_BYTES,
            ws="websockets-sansio", ws_max_size=MESSAGE_BYTES, ws_per_message_deflate=False,
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        self._listener, self._context, self._crowd = listener, context, crowd
        self._coming: set[asyncio.Task[None]] = set()
        self._there: dict[Connection, tuple[str, socket.socket]] = {}
        """Those that came, the oldest first: from which site, and by which socket."""

    async def accept(self) -> None:
        """Let in whoever there is room for, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, address = await loop.sock_accept(self._listener)
            except OSError as error:  # or the peer was gone before it was taken
                if error.errno in SCARCE:
                    LOG.warning("no more connections can be taken: %s", error.strerror)
                await asyncio.sleep(LOOK_S if error.errno in SCARCE else 0)
                continue
            left = self._crowd.enter(address[0])
            if left is None and self._made_room(site(address[0])):
                left = self._crowd.enter(address[0])
            if left is None:
                refused.add("connections")
                taken.close()
                continue
            task = asyncio.create_task(self._let_in(taken, left, site(address[0])))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    def _made_room(self, asks: str) -> bool:
        """Part with the oldest connection on which nothing is asked, of this site, or of any where there are too many
        in all: who holds places without a word keeps nobody out, probes least of all."""
        idle = [(one, where) for one, (where, _) in self._there.items() if one.idle]
        found = next((one for one, where in idle if where == asks), None)
        if found is None and self._crowd.full:
            found = next((one for one, _ in idle), None)
        if found is None:
            return False
        refused.add("connections")
        taken = self._there[found][1]
        found.leave()
        if found.transport is not None:
            found.transport.abort()
        else:  # in the middle of a TLS handshake, which then comes to nothing
            with suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
        return True

    async def _let_in(self, taken: socket.socket, left: Callable[[], None], where: str) -> None:
        loop = asyncio.get_running_loop()

        def gone() -> None:
            self._there.pop(connection, None)
            left()

        connection = Connection(self._config, self._state, {}, loop, gone)
        self._there[connection] = where, taken

        def made() -> Connection:
            return connection

        times = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": LAST_S} if self._context else {}
        try:
            await loop.connect_accepted_socket(made, taken, ssl=self._context, **times)
        except BaseException as error:
            gone()
            taken.close()
            if not isinstance(error, OSError):  # a handshake that came to nothing
                raise

    async def watch(self) -> None:
        """Part with who is overdue, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            now = loop.time()
            for connection in list(self._state.connections):
                if connection.overdue(now):
                    connection.transport.abort()

    async def close(self) -> None:
        """Take nobody any more, let requests come to their end for LAST_S, and part with the rest."""
        self._listener.close()
        for task in list(self._coming):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(WORDS_S):
                while self._state.tasks:
                    await asyncio.sleep(POLL_S)
        for connection in list(self._state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                while self._state.connections or self._state.tasks:
                    await asyncio.sleep(POLL_S)
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
