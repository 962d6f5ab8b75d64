"""A connection between a stream and the program that opened it, wherever the stream's stages run.

The program listens, at a `Door` or as a gateway does, for all streams on one port; a stage connects with the address
`tcp://HOST:PORT/TOKEN`, and says the token, so that nobody else on the network is taken for it. With
`tls://HOST:PORT/TOKEN#SHA256` what follows is encrypted, and goes only to whose certificate has that digest. An IPv6
address stands in brackets.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from conf.errors import UserError
from conf.paths import ADDRESS, ADDRESSES

CONNECT_S, TOKEN_S = 10.0, 2.0
"""Longest wait for a connection, and for its token."""
POLL_S = 0.05
"""How late it may be noticed that nobody will come any more."""
ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""Of a door's connection: a host that is gone says nothing, and after 11 s of that another stage is let in."""
LONGEST_LINE, LONGEST_BODY = 1 << 16, 1 << 24
"""Bytes of a message's line and of what follows it, at most."""
BLOCK = 1 << 16
LAST_S = 5.0
"""Longest wait for a gateway to have read what was sent before `end`: it hangs up then."""


def bracketed(host: str) -> str:
    """A host as it stands in an address: the colons of IPv6 would be taken for the port's."""
    return f"[{host}]" if ":" in host else host


def connect(setting: str, address: str) -> socket.socket:
    """The stage's end of the connection; `setting` is what names the address, such as `sink.reader`.

    Raises:
        UserError: it is no address, or nobody listens there.
    """
    value = f"{setting}={address.rpartition('/')[0]}"  # without the token
    try:
        parts = urlsplit(address)
        where, token = (parts.hostname, parts.port), parts.path.removeprefix("/")
        if None in where or not token or f"{parts.scheme}://" not in ADDRESSES:
            raise ValueError
    except ValueError as error:
        raise UserError(value, "is no address", f"give {ADDRESS}HOST:PORT/TOKEN") from error
    try:
        connection = socket.create_connection(where, CONNECT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "tls":
            connection = _encrypted(connection, parts.fragment)
        connection.sendall(token.encode())
        connection.settimeout(None)
    except OSError as error:
        rule = f"nobody answers there ({error.strerror or error})"
        raise UserError(value, rule, "keep the program running that listens there") from error
    return connection


def _encrypted(connection: socket.socket, digest: str) -> socket.socket:
    """A connection to whose certificate has a SHA-256 digest, in hexadecimal digits: who signed it says nothing more.

    Raises:
        OSError: it is another's, or no TLS is spoken there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secure = context.wrap_socket(connection)
    seen = hashlib.sha256(secure.getpeercert(binary_form=True)).hexdigest()
    if not secrets.compare_digest(seen, digest.lower()):
        secure.close()
        raise OSError("its certificate is another one")
    return secure


def once_it_can(connection: socket.socket, act: Callable[[], Any], writes: bool, over: Callable[[], bool]) -> Any:
    """What an act gives on a connection that does not block, once it can be done; None: it is `over` before."""
    while not over():
        wants_write = writes
        try:
            return act()
        except (BlockingIOError, ssl.SSLWantReadError):
            wants_write = writes and not isinstance(connection, ssl.SSLSocket)
        except ssl.SSLWantWriteError:
            wants_write = True
        wait = select.poll()
        with contextlib.suppress(ValueError):  # closed just now
            wait.register(connection, select.POLLOUT if wants_write else select.POLLIN)
            wait.poll(POLL_S * 1000)
    return None


class Wire:
    """Messages over a connection, both ways: a line of JSON `{"kind": ..., "bytes": n}` and n bytes behind it.

    Any thread may send, one may receive: neither is held up by the other, and what is sent comes whole.

    Args:
        connection: open, in the clear or encrypted.
    """

    def __init__(self, connection: socket.socket):
        connection.settimeout(0.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket, self._held = connection, bytearray()
        self._sending, self._using = threading.Lock(), threading.Lock()
        """Of who sends a message; and of who uses the socket just now: two threads may not do so at once under TLS."""
        self._closed = threading.Event()

    def send(self, kind: str, body: bytes = b"", **head: Any) -> None:
        """Send a message; waits while the other end does not take it.

        Raises:
            OSError: the connection has ended.
        """
        line = json.dumps({"kind": kind, "bytes": len(body), **head}, separators=(",", ":")).encode() + b"\n"
        with self._sending:
            left = memoryview(line + body)
            while left:
                if sent := self._try(lambda data=left: self._socket.send(data), writes=True):
                    left = left[sent:]

    def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message, waiting for it; None: there will be none."""
        try:
            while (end := self._held.find(b"\n")) < 0:
                if len(self._held) > LONGEST_LINE or not self._more():
                    return None
            head = json.loads(self._held[:end])
            size = int(head["bytes"])
            if not 0 <= size <= LONGEST_BODY:
                return None
            del self._held[: end + 1]
            while len(self._held) < size:
                if not self._more():
                    return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        body = bytes(self._held[:size])
        del self._held[:size]
        return head, body

    def _more(self) -> bool:
        block = self._try(lambda: self._socket.recv(BLOCK), writes=False)
        self._held += block
        return bool(block)

    def _try(self, act: Callable[[], Any], writes: bool) -> Any:
        """What an act on the socket gives, once it can."""

        def alone() -> Any:
            with self._using:
                return act()

        if (done := once_it_can(self._socket, alone, writes, self._closed.is_set)) is None:
            raise OSError("the connection was closed here")
        return done

    def close(self) -> None:
        """End it; whoever waits here, in any thread, goes on."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._using:
            self._socket.close()


class Door:
    """The program's end: where one stage connects.

    Args:
        host: this machine, as the stage's machine knows it.

    Attributes:
        address: what the stage is told.
        socket: of the connection, once it is there.
        file: what comes on it, to read.
        came: whether a stage has come at all.
    """

    def __init__(self, host: str):
        self._token = secrets.token_hex(16)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._closed = self.came = False
        self.socket: socket.socket | None = None
        self.file: BinaryIO | None = None
        self.address = f"{ADDRESS}{bracketed(host)}:{self._listener.getsockname()[1]}/{self._token}"

    def wait(self, over: Callable[[], bool]) -> bool:
        """Wait for the stage; False: it is `over`, and none has come, or the door was closed."""
        with contextlib.suppress(OSError, ValueError):  # closed by another thread
            while self.socket is None:
                last = over()  # asked before the look: who came before the end is let in
                if select.select([self._listener], [], [], POLL_S)[0]:
                    self._let_in()
                elif last:
                    return False
            return not self._closed
        return False

    def _let_in(self) -> None:
        """Take a connection whose first bytes are the token."""
        connection, _ = self._listener.accept()
        connection.settimeout(TOKEN_S)
        file = connection.makefile("rb")
        with contextlib.suppress(OSError):
            if secrets.compare_digest(file.read(len(self._token)), self._token.encode()):
                connection.settimeout(None)
                for option, value in ALIVE:
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self.socket, self.file, self.came = connection, file, True
                return
        file.close()
        connection.close()

    @property
    def left(self) -> bool:
        """Whether the stage has hung up. Of one that says something meanwhile it is not known."""
        if self.socket is None:
            return True
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def again(self) -> None:
        """The stage has gone, and another may go on in its place: let it in at the next `wait`."""
        connection, self.socket = self.socket, None
        if connection is not None:
            self.file.close()
            connection.close()

    def close(self) -> None:
        """Let the stage go; whoever waits here, in any thread, goes on."""
        self._closed = True
        for end in (self._listener, self.socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
