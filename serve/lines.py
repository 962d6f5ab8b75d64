"""Lines that come on a connection, none of them longer than is sound."""

from __future__ import annotations

import asyncio

LONGEST_LINE, BLOCK = 1 << 20, 1 << 16
"""Bytes of a line, at most, and of what is read at once."""


class Lines:
    """Lines that come on a connection.

    Args:
        reader: of it.
    """

    def __init__(self, reader: asyncio.StreamReader):
        self._reader, self._held = reader, bytearray()

    async def next(self) -> bytes | None:
        """The next that is not empty, without its end; None: there are no more, or one is too long."""
        while True:
            line, end, rest = self._held.partition(b"\n")
            if end:
                self._held = rest
                if line.strip():
                    return bytes(line)
            elif len(self._held) > LONGEST_LINE or not (block := await self._reader.read(BLOCK)):
                return None
            else:
                self._held += block
