"""A connection between a stream and the program that opened it, wherever the stream's stages run.

The program listens at a `Door`; a stage connects with the door's address, `tcp://HOST:PORT/TOKEN`, and says the token,
so that nobody else on the network is taken for it.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urlsplit

from conf.errors import UserError
from conf.paths import ADDRESS

CONNECT_S, TOKEN_S = 10.0, 2.0
"""Longest wait for a connection, and for its token."""
POLL_S = 0.05
"""How late it may be noticed that nobody will come any more."""


def connect(setting: str, address: str) -> socket.socket:
    """The stage's end of the connection; `setting` is what names the address, such as `sink.reader`.

    Raises:
        UserError: it is no address, or nobody listens there.
    """
    value = f"{setting}={address.rpartition('/')[0]}"  # without the token
    try:
        parts = urlsplit(address)
        where, token = (parts.hostname, parts.port), parts.path.removeprefix("/")
        if None in where or not token:
            raise ValueError
    except ValueError as error:
        raise UserError(value, "is no address", f"give {ADDRESS}HOST:PORT/TOKEN") from error
    try:
        connection = socket.create_connection(where, CONNECT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(token.encode())
        connection.settimeout(None)
    except OSError as error:
        rule = f"nobody answers there ({error.strerror or error})"
        raise UserError(value, rule, "keep the program running that listens there") from error
    return connection


class Door:
    """The program's end: where one stage connects.

    Args:
        host: this machine, as the stage's machine knows it.

    Attributes:
        address: what the stage is told.
        socket: of the connection, once it is there.
        file: what comes on it, to read.
    """

    def __init__(self, host: str):
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server((host, 0))
        self._closed = False
        self.socket: socket.socket | None = None
        self.file: BinaryIO | None = None
        self.address = f"{ADDRESS}{host}:{self._listener.getsockname()[1]}/{self._token}"

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
                self.socket, self.file = connection, file
                return
        file.close()
        connection.close()

    def close(self) -> None:
        """Let the stage go; whoever waits here, in any thread, goes on."""
        self._closed = True
        for end in (self._listener, self.socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
