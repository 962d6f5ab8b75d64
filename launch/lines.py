"""A conversation in lines of JSON over a connection, with a sign of life every second both ways."""

from __future__ import annotations

import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEAT_S, SILENT_S = 1.0, 10.0
"""Between signs of life, and without one for so long the other end counts as gone."""
FLUSH_S = 2.0
"""How long what was said last may take to leave."""
POLL_S = 0.25
BLOCK = 1 << 16
LONGEST_LINE, MOST_WAITING = 1 << 20, 1 << 24
"""Bytes of a line that is heard, and of those that wait for the other end to take them."""


class Conversation(threading.Thread):
    """Talks and listens, in one thread: two may not use a socket at once that is encrypted.

    Args:
        connection: open; it is this thread's from now on.
        heard: takes each line, as bytes without its end, in this thread.
        gone: called at the end, in this thread, with why; empty: it was closed here.
        silent_s: after which the other end counts as gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        heard: Callable[[bytes], None],
        gone: Callable[[str], None],
        silent_s: float = SILENT_S,
    ):
        super().__init__(name="conversation", daemon=True)
        self._socket, self._heard, self._gone, self._silent_s = connection, heard, gone, silent_s
        connection.settimeout(0.0)
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._lock, self._out, self._in = threading.Lock(), bytearray(), bytearray()
        self._closing: float | None = None

    def say(self, message: dict[str, Any]) -> None:
        """Say something, from any thread; never waits. What cannot be said any more is dropped."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._out += line
        self._nudge()

    def close(self) -> None:
        """Say what is left to say, and end; returns when that is done."""
        self._closing = time.monotonic()
        self._nudge()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(2 * FLUSH_S)

    def run(self) -> None:
        try:
            why = self._talk()
        except OSError as error:
            why = error.strerror or str(error)
        for end in (self._socket, self._wake, self._woken):
            end.close()
        self._gone("" if self._closing is not None else why)

    def _nudge(self) -> None:
        with suppress(OSError):  # woken already, or over
            self._woken.send(b".")

    def _talk(self) -> str:
        """Until there is nothing more to say or to hear; returns why."""
        last = time.monotonic()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            heard = self._listen()
            if heard is None:
                return "it has ended the connection"
            now = time.monotonic()
            last = now if heard else last
            if now - last > self._silent_s:
                return f"nothing was heard of it for {self._silent_s:g} s"
            with self._lock:
                self._send()
                left = len(self._out)
            if self._closing is not None and (not left or now - self._closing > FLUSH_S):
                return ""
            if left > MOST_WAITING:
                return "it takes nothing any more"
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if left else 0))
            poll.poll(POLL_S * 1000)
            with suppress(BlockingIOError):
                self._wake.recv(BLOCK)

    def _send(self) -> None:
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while self._out:
                # An encrypted socket wants the same bytes again where it could not send them.
                del self._out[: self._socket.send(self._out[:BLOCK])]

    def _listen(self) -> bool | None:
        """Take in what has come; whether anything has. None: the other end has closed, or breaks the rules."""
        any_came = False
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while block := self._socket.recv(BLOCK):
                any_came = True
                *lines, rest = block.split(b"\n")
                for line in lines:
                    whole = bytes(self._in + line)
                    self._in.clear()
                    if whole.strip():
                        self._heard(whole)
                self._in += rest
                if len(self._in) > LONGEST_LINE:
                    return None
            return None
        return any_came
