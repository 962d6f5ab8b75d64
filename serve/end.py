"""Where one stage of a session connects: it comes, talks, goes; if its process was lost another comes in its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from serve.link import Connection

log = logging.getLogger(__name__)

LAST_WORD_S = 1.0
"""Longest wait for what a stage has said last, when another has come in its place."""


class End:
    """One of both.

    Args:
        greet: told of a connection, and whether it is another's than the first.
        hear: takes what the stage says.
        gone: told that it has gone without saying that this was all.
        failed: told why it cannot go on.
        clock: seconds, monotonic.

    Attributes:
        connection: with the stage; None: it is not there.
        since: when it has gone; None: it is there, has not come yet, or has said that this was all.
    """

    def __init__(
        self,
        greet: Callable[[Connection, bool], None],
        hear: Callable[[dict[str, Any], bytes], None],
        gone: Callable[[str], None],
        failed: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self._greet, self._hear, self._gone, self._failed, self._clock = greet, hear, gone, failed, clock
        self.connection: Connection | None = None
        self.since: float | None = None
        self._came = self._closed = False
        self._newest: Connection | None = None
        self._left = asyncio.Event()

    def send(self, kind: str, body: bytes = b"", **head: Any) -> None:
        """Say something to the stage, if it is there."""
        if self.connection is not None:
            self.connection.send(kind, body, **head)

    @property
    def behind(self) -> int:
        """Bytes that wait for the stage to take them."""
        return self.connection.behind if self.connection is not None else 0

    def close(self) -> None:
        """Let go of it, and take no other."""
        self._closed = True
        if self.connection is not None:
            self.connection.close()

    async def take(self, connection: Connection) -> None:
        """See to a stage that has come, until it goes."""
        self._newest = connection
        await self._see_off()
        if self._newest is not connection or self._closed:
            return
        again, self._came = self._came, True
        self.connection, self._left, self.since = connection, asyncio.Event(), None
        tell, why = self._gone, "its stage has gone"
        try:
            self._greet(connection, again)
            while (message := await connection.receive()) is not None:
                if message[0].get("kind") == "end":
                    why = ""
                    return
                self._hear(*message)
        except Exception:
            # Nobody would hear of it otherwise, and the picture would stand.
            tell, why = self._failed, "what its stage says is not understood"
            log.exception("a stage is let go of")
        finally:
            self.connection = None
            self._left.set()
            if why:
                self.since = self._clock()
                tell(why)

    async def _see_off(self) -> None:
        """The one that is there is gone. What it said last may still be on the way: viewers see it."""
        if self.connection is None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._left.wait(), LAST_WORD_S)
        if (before := self.connection) is not None:
            before.close()
            await self._left.wait()
