"""WebSockets whose unsent bytes wait in the gateway, where they can be thrown away, and not below it.

Left alone, the system takes megabytes for a slow line and asyncio another 64 KiB: at 200 kbit/s that is a minute and
more of pictures nobody can take back, and the sender would see a line that keeps up.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.transports import BaseTransport

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

UNSENT = 8 * 1024
"""Bytes that wait in the system, and in asyncio before it holds the sender up."""
LINGER_S = 10.0
"""How long the last bytes may take."""


class TightWebSocket(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=TightWebSocket)`."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNSENT)
        end = transport.get_extra_info("socket")
        if end is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def send_receive_event_to_app(self) -> None:
        """Text that is no UTF-8 is the caller's mistake (RFC 6455, 8.1): closed with 1007, nothing for the log."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Nobody may keep a connection by not reading its last bytes."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER_S, self.transport.abort)
