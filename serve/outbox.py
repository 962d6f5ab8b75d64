"""What waits to be sent over one WebSocket: bounded, and what is old is worth nothing."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

LONGEST_S, MOST = 1.0, 4 << 20
"""Of media that waits: seconds, bytes."""
WORDS = 1 << 18
"""Characters of messages that wait for one who takes none."""
LATEST = frozenset({"session.figures", "session.queued"})
"""Messages of which only the last one says anything."""


class Item(NamedTuple):
    """One message.

    Attributes:
        data: text or bytes; None: the connection is to be closed.
        since: when it was put here.
        kind: of a message; `media`, which may be thrown away; `init`, which may not; `end`.
        code: to close with.
    """

    data: str | bytes | None
    since: float
    kind: str
    code: int = 1000


class Outbox:
    """A queue with one taker, in the gateway's loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._items: deque[Item] = deque()
        self._there = asyncio.Event()
        self._sent: Item | None = None
        self._ended = False

    def say(self, message: dict[str, Any]) -> None:
        """A message of the protocol."""
        kind = message["type"]
        if kind in LATEST:
            self._items = deque(item for item in self._items if item.kind != kind)
        self._put(Item(json.dumps(message), self._clock(), kind))

    def play(self, data: bytes) -> None:
        """Media; what it is worth ends with its time."""
        self._put(Item(data, self._clock(), "media"))

    def begin(self, data: bytes) -> None:
        """Media without which the rest cannot be played."""
        self._put(Item(data, self._clock(), "init"))

    def end(self, code: int) -> None:
        """Close the connection with `code` (RFC 6455, 7.4) once all of this is sent; what comes later is not taken."""
        self._put(Item(None, self._clock(), "end", code))
        self._ended = True

    def empty(self) -> None:
        """Throw away the media that waits."""
        self._items = deque(item for item in self._items if item.kind != "media")

    @property
    def lag_s(self) -> float:
        """Since when the oldest media has been waiting, what is being sent included; 0: none does."""
        first = next((item for item in (self._sent, *self._items) if item and item.kind == "media"), None)
        return 0.0 if first is None else self._clock() - first.since

    @property
    def over(self) -> bool:
        """Whether more media waits than may."""
        waiting = [item for item in self._items if item.kind == "media"]
        held = sum(len(item.data) for item in waiting)
        return bool(waiting) and (self._clock() - waiting[0].since > LONGEST_S or held > MOST)

    async def take(self) -> Item:
        """The next message; the one taken before it has been sent.

        Raises:
            TimeoutError: messages have piled up that nobody takes.
        """
        self._sent = None
        await self._there.wait()
        if sum(len(item.data) for item in self._items if isinstance(item.data, str)) > WORDS:
            raise TimeoutError
        self._sent = self._items.popleft()
        if not self._items:
            self._there.clear()
        return self._sent

    def _put(self, item: Item) -> None:
        if not self._ended:
            self._items.append(item)
            self._there.set()
