"""The two ends of a session's stream: the stage that samples what a person does, and the one that plays what is made.

Each connects when its worker comes to it, and not before. What is said to one that is not there yet is kept, as far as
it still holds then.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from serve.classes import Rate
from serve.link import Connection, Link
from serve.media import Packet

log = logging.getLogger(__name__)

WAITING = 64
"""Events that are kept for a stage that is not there yet."""


class Listener(Protocol):
    """Who is told what stages say. All is called in the gateway's loop."""

    def sampled(self, chunk: int, events: tuple[str, ...], held_s: float, late_s: float) -> None:
        """A chunk was sampled: it shows these events first; so much speech is held, so much sound came too late."""
        ...

    def chunk(self, head: dict[str, Any]) -> None:
        """A chunk begins to leave: `chunk`, `frames`, `first_frame`, `pts`, `slack_s`."""
        ...

    def packet(self, packet: Packet) -> None:
        """A picture or sound is due."""
        ...

    def silent(self, seconds: float) -> None:
        """The sound was cut off when so much had been heard."""
        ...

    def failed(self, why: str) -> None:
        """It cannot go on. Of no meaning to a session that ends, or has ended."""
        ...


class Ends:
    """Both ends of one session.

    Args:
        link: where they connect.
        margin_s: how long before its frames are due a chunk is to be there.
        heard: is told what they say.
    """

    def __init__(self, link: Link, margin_s: float, heard: Listener):
        self._link, self._margin_s, self._heard = link, margin_s, heard
        self._source: Connection | None = None
        self._sink: Connection | None = None
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=WAITING)
        self._codecs: tuple[list[str], list[str]] = [], []
        self._rates: dict[bool, Rate] = {False: (None, 1)}
        self.addresses: tuple[str, ...] = ()

    def open(self) -> dict[str, Any]:
        """Expect both; returns what is to be changed of the stream's configuration."""
        self.addresses = self._link.expect(self._take_source), self._link.expect(self._take_sink)
        source, sink = self.addresses
        return {"source": {"session": source}, "sink": {"session": sink}}

    def close(self) -> None:
        """Let go of both, whether they have come or not."""
        for address in self.addresses:
            self._link.forget(address)
        for connection in (self._source, self._sink):
            if connection is not None:
                connection.close()

    # -- to the one that samples --------------------------------------------------------------------------------------

    def event(self, id: str, event: dict[str, Any]) -> None:
        """Something was typed or pressed."""
        if self._source is None:
            self._events.append((id, event))
        else:
            self._source.send("event", id=id, event=event)

    def sound(self, pcm: bytes, at: int) -> None:
        """A microphone was heard; what it said to nobody is not said later."""
        if self._source is not None:
            self._source.send("sound", pcm, at=at)

    def speech(self, pcm: bytes) -> bool:
        """Something is to be spoken; False: nobody takes it yet."""
        if self._source is not None:
            self._source.send("speech", pcm)
        return self._source is not None

    async def _take_source(self, connection: Connection) -> None:
        self._source = connection
        while self._events:
            id, event = self._events.popleft()
            connection.send("event", id=id, event=event)
        try:
            await self._listen(connection, self._said_by_source)
        finally:
            self._source = None

    def _said_by_source(self, head: dict[str, Any], _: bytes) -> None:
        if head.get("kind") == "sampled":
            self._heard.sampled(head["chunk"], tuple(head["events"]), head["held_s"], head["late_s"])

    async def _listen(self, connection: Connection, take: Callable[[dict[str, Any], bytes], None]) -> None:
        """Take what a stage says, until it says that this was the end. One that goes without a word has failed, and
        likewise one whose words cannot be taken: nobody would hear of it otherwise, and the picture would stand."""
        why = "its stage has gone"
        try:
            while (message := await connection.receive()) is not None:
                if message[0].get("kind") == "end":
                    why = ""
                    return
                take(*message)
        except Exception:
            why = "what its stage says is not understood"
            log.exception("a stage is let go of")
        finally:
            if why:
                self._heard.failed(why)

    # -- to the one that plays ----------------------------------------------------------------------------------------

    def want(self, codecs: list[str], thin: list[str]) -> None:
        """Pictures are wanted in these codecs; and, in those, a second time for thin lines."""
        if (codecs, thin) != self._codecs:
            self._codecs = codecs, thin
            self._play("want", codecs=codecs, thin=thin)

    def rate(self, rate: Rate, thin: bool) -> None:
        """What the pictures of an encoding may take."""
        if self._rates.get(thin) != rate:
            self._rates[thin] = rate
            self._play("rate", bits_per_second=rate[0], every=rate[1], thin=thin)

    def key(self) -> None:
        """A picture is wanted with which a decoder can begin."""
        self._play("key")

    def mute(self) -> None:
        """Nothing that was sampled so far is to be heard any more."""
        self._play("mute")

    def unmute(self, chunk: int) -> None:
        """From this chunk on sound is to be heard again."""
        self._play("unmute", chunk=chunk)

    def _play(self, kind: str, **head: Any) -> None:
        if self._sink is not None:
            self._sink.send(kind, **head)

    async def _take_sink(self, connection: Connection) -> None:
        self._sink = connection
        self._play("hello", margin_s=self._margin_s)
        self._play("want", codecs=self._codecs[0], thin=self._codecs[1])
        for thin, (bits_per_second, every) in self._rates.items():
            self._play("rate", bits_per_second=bits_per_second, every=every, thin=thin)
        try:
            await self._listen(connection, self._said_by_sink)
        finally:
            self._sink = None

    def _said_by_sink(self, head: dict[str, Any], body: bytes) -> None:
        kind = head.get("kind")
        if kind in ("video", "sound"):
            codec, key, thin = head.get("codec", "opus"), head.get("key", False), head.get("thin", False)
            self._heard.packet(Packet(kind, codec, body, head["pts"], key, head["chunk"], thin))
        elif kind == "chunk":
            if self._source is not None:
                slack_s = head["slack_s"]
                self._source.send("slack", seconds=slack_s - self._margin_s, late_s=max(0.0, -slack_s))
            self._heard.chunk(head)
        elif kind == "position":
            self._heard.silent(head["seconds"])
        elif kind == "failed":
            self._heard.failed(head["message"])
