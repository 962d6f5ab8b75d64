"""uvicorn's two protocols, HTTP and WebSocket, where they would wait for ever, keep without end or fail aloud.

What is not in time is seen by whoever looks at `overdue` once a second (`serve.server`), so there is no timer of each
connection: a head that does not come to its end (slow loris; neither uvicorn nor h11 has a limit for it), the rest of a
body that nobody reads, an answer that is not taken, an end that is not acknowledged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

from serve.guard import DRESS
from serve.problems import Problem
from serve.tight import tighten

HEAD_S, STALLED_S, CLOSING_S = 10.0, 20.0, 5.0
"""Longest wait for a request's head, for a peer that takes nothing of what is sent, and for the end of a connection."""
MESSAGE_BYTES = 1 << 20
"""Of a WebSocket's message."""
FRAGMENTS = 1024
"""Frames of one WebSocket message: frames may be empty, so their bytes say nothing of their number."""


class Patience:
    """How long something has been in one state."""

    def __init__(self) -> None:
        self._state: Hashable = None
        self._since = 0.0

    def __call__(self, state: Hashable, now: float) -> float:
        """Seconds since this state was first seen, without another one between."""
        if state != self._state:
            self._state, self._since = state, now
        return now - self._since


class Connection(H11Protocol):
    """HTTP/1.1.

    Args:
        left: called once the connection, or the WebSocket that it has become, has ended.
        others: as uvicorn's.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: Any = None,
        left: Callable[[], None] = lambda: None,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self._left, self._patience, self._taken = left, Patience(), 0
        self._upgraded = False
        self.ws_protocol_class = partial(Socket, left=left)

    def connection_made(self, transport: Any) -> None:
        """What is sent waits here from now on, and not below."""
        super().connection_made(transport)
        tighten(transport)

    def leave(self) -> None:
        """It counts no more."""
        self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end has gone, or ours."""
        self._left()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The peer has taken something."""
        self._taken += 1
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """A `Socket` takes over."""
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    @property
    def idle(self) -> bool:
        """Whether nothing is asked here that is not answered: no request has come whole, or none is under way."""
        return not self._upgraded and (self.cycle is None or self.cycle.response_complete)

    def overdue(self, now: float) -> bool:
        """Whether the peer has been waited for long enough; asked again and again, with the loop's time in seconds."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            return self._patience("closing", now) > CLOSING_S
        if self.flow.write_paused:
            return self._patience(("stalled", self._taken), now) > STALLED_S
        if answered and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            # Another request between two looks is another wait.
            return self._patience(("head", id(self.cycle)), now) > HEAD_S
        self._patience(None, now)
        return False

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is refused if there is still time to say so; a request under way is given up."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.send(event) for event in _bad_request()))
        self.transport.close()


def _bad_request() -> list[Any]:
    problem = Problem("bad_request", "this is no HTTP/1.1 (RFC 9112)")
    said = json.dumps(problem.body).encode()
    headers = [(name.encode(), value.encode()) for name, value in DRESS.items()]
    headers += [(b"content-type", b"application/problem+json"), (b"content-length", str(len(said)).encode())]
    headers += [(b"connection", b"close")]
    return [h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(said), h11.EndOfMessage()]


class Socket(WebSocketsSansIOProtocol):
    """A WebSocket (RFC 6455).

    Args:
        left: called once the connection has ended.
        others: as uvicorn's.
    """

    def __init__(self, *args: Any, left: Callable[[], None] = lambda: None, **named: Any):
        super().__init__(*args, **named)
        self._left, self._patience, self._taken = left, Patience(), 0

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end has gone, or ours."""
        self._left()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The peer has taken something."""
        self._taken += 1
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Part of the handshake, or of frames."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:  # which uvicorn does not ask for
            self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        """Of the application, which may not know yet that the protocol has ended the connection.

        Raises:
            ClientDisconnected: it has; uvicorn would call it a fault of ours.
        """
        if self.close_sent and self.initial_response is None:
            raise ClientDisconnected
        await super().send(message)
        if self.initial_response is not None and self.close_sent:  # a handshake that was refused is complete, too
            self.handshake_complete = True

    def overdue(self, now: float) -> bool:
        """As of `Connection`."""
        if self.transport.is_closing():
            return self._patience("closing", now) > CLOSING_S
        if not self.writable.is_set():
            return self._patience(("stalled", self._taken), now) > STALLED_S
        if not self.handshake_complete:
            return self._patience("handshake", now) > HEAD_S
        self._patience(None, now)
        return False

    def handle_cont(self, event: Frame) -> None:
        """Part of a message."""
        if len(self.frames) >= FRAGMENTS:
            self._fail(1009, "too many fragments")
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """A peer that asks and does not take the answers gets none: they would be kept here."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(1007, "no UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """What came is no WebSocket, or not even its beginning."""
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        if not self.handshake_initiated and not self.transport.is_closing():
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(code, reason)
        self.handle_parser_exception()
