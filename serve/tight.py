"""Connections whose unsent bytes wait in the gateway, where they can be thrown away, and not below it.

Left alone, the system takes megabytes for a slow line and asyncio another 64 KiB: at 200 kbit/s that is a minute and
more of pictures nobody can take back, and the sender sees a line that keeps up.
"""

from __future__ import annotations

import socket
from asyncio.transports import BaseTransport

UNSENT = 8 * 1024
"""Bytes that wait in the system, and in asyncio before it holds the sender up."""


def tighten(transport: BaseTransport) -> None:
    """Have whoever sends wait as soon as the other end does not take what is sent."""
    transport.set_write_buffer_limits(high=UNSENT)
    end = transport.get_extra_info("socket")
    if end is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
