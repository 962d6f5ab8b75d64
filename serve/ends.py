"""The two ends of a session's stream: the stage that samples what a person does, and the one that plays what is made.

Each connects when its worker comes to it, and not before. What is said to one that is not there yet is kept, as far as
it still holds then. Where the pipeline recovers, another may come in its place, and is told where it stands: the one
that samples, what was asked and not sampled; the one that plays, what viewers have seen.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from serve.classes import Rate
from serve.end import End
from serve.link import Connection, Link
from serve.media import Packet
from serve.seen import Seen

WAITING = 64
"""Events that are kept until they are sampled."""
BEHIND = 1 << 20
"""Bytes on their way to the one that samples: over that no picture is added, which newer ones would make worthless."""


class Listener(Protocol):
    """Who is told what stages say. All is called in the gateway's loop."""

    def sampled(
        self, chunk: int, events: tuple[str, ...], held_s: float, late_s: float, seen: tuple[float, int] | None,
        at: list[float] | None = None,
    ) -> None:  # fmt: skip
        """A chunk was sampled: it shows these events first; so much speech is held, so much sound came too late; when
        the first of a camera's pictures was taken that is new in it, and its frame that shows it; and where the world's
        camera is in its last frame."""
        ...

    def again(self, chunk: int) -> None:
        """Another stage samples, from this chunk on; no speech is held."""
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

    def gone(self, why: str) -> None:
        """A stage has gone without a word. Of no meaning to a session that ends, or has ended."""
        ...

    def failed(self, why: str) -> None:
        """It cannot go on. Likewise."""
        ...


class Ends:
    """Both ends of one session.

    Args:
        link: where they connect.
        margin_s: how long before its frames are due a chunk is to be there.
        heard: is told what they say.
        clock: seconds, monotonic.

    Attributes:
        still: whether the stream stands still.
    """

    def __init__(self, link: Link, margin_s: float, heard: Listener, clock: Callable[[], float] = time.monotonic):
        self._link, self._margin_s, self._heard, self._clock = link, margin_s, heard, clock
        self._source = End(self._greet_source, self._said_by_source, heard.gone, heard.failed, clock)
        self._sink = End(self._greet_sink, self._said_by_sink, heard.gone, heard.failed, clock)
        self._events: OrderedDict[str, dict[str, Any]] = OrderedDict()
        """That were not sampled yet, in the order of coming."""
        self._held: dict[str, Any] | None = None
        """The last action."""
        self._listens = False
        """Whether the one that samples knows where it stands."""
        self._picture = b""
        self._seen = Seen(clock)
        self._codecs: tuple[list[str], list[str]] = [], []
        self._rates: dict[bool, Rate] = {False: (None, 1)}
        self.still = False
        self._under_way = -1
        """The last chunk that was sampled before the stream stood still."""
        self.addresses: tuple[str, ...] = ()

    def open(self, picture: bytes = b"", once: bool = True) -> dict[str, Any]:
        """Expect both; returns what is to be changed of the stream's configuration.

        Args:
            picture: that the stream begins with, as PNG; empty: the one of its configuration.
            once: whether each comes once, and no other in its place.
        """
        self._picture = picture
        self.addresses = tuple(self._link.expect(end.take, once=once) for end in (self._source, self._sink))
        source, sink = self.addresses
        return {"source": {"session": source}, "sink": {"session": sink}}

    def close(self) -> None:
        """Let go of both, whether they have come or not."""
        self._picture = b""
        for address in self.addresses:
            self._link.forget(address)
        for end in (self._source, self._sink):
            end.close()

    def gone_s(self, now: float) -> float | None:
        """Seconds since one has gone that is not there again; None: none has."""
        since = [end.since for end in (self._source, self._sink) if end.since is not None]
        return now - min(since) if since else None

    def stand(self, sampled: int) -> None:
        """The stream stands still; chunk `sampled` was sampled last."""
        self.still, self._under_way = True, sampled

    def waited(self, chunk: int) -> bool:
        """Whether the stream stood still between a chunk's sampling and its leaving, or does: it was late for that."""
        return self.still or chunk <= self._under_way

    # -- to the one that samples --------------------------------------------------------------------------------------

    def event(self, id: str, event: dict[str, Any]) -> None:
        """Something was typed or pressed."""
        self._events[id] = event
        if len(self._events) > WAITING:
            # A mouse that moves says more than anybody types, and each word of it is in place of the one before.
            actions = [one for one, said in self._events.items() if said["type"] == "action"]
            del self._events[actions[0] if len(actions) > 1 else next(iter(self._events))]
        if event["type"] == "action":
            self._held = event
        if self._listens:
            self._source.send("event", id=id, event=event)

    def sound(self, pcm: bytes, at: int) -> None:
        """A microphone was heard; what it said to nobody is not said later."""
        if self._listens and not self.still:
            self._source.send("sound", pcm, at=at)

    def frame(self, jpeg: bytes, at: float) -> bool:
        """A camera has seen something; False: nobody takes it now, and it is not said later."""
        there = self._listens and not self.still and self._source.connection is not None
        if there and self._source.behind <= BEHIND:
            self._source.send("frame", jpeg, at=at)
            return True
        return False

    def speech(self, pcm: bytes) -> bool:
        """Something is to be spoken; False: nobody takes it yet."""
        there = self._listens and self._source.connection is not None
        if there:
            self._source.send("speech", pcm)
        return there

    def _greet_source(self, connection: Connection, again: bool) -> None:
        connection.send("hello", self._picture)
        self._listens = False
        if not again:
            self._say_events(connection)

    def _say_events(self, connection: Connection) -> None:
        """Say what was not sampled yet; from now on it is said what comes."""
        for id, event in self._events.items():
            connection.send("event", id=id, event=event)
        self._listens = True

    def _go_on(self, chunk: int, sampled: list[tuple[int, list[str], list[float] | None]]) -> None:
        """Another has come to sample, which knows that chunks before `chunk` were, what some of them showed, and from
        where."""
        self._heard.again(chunk)
        for one, events, at in sampled:
            self._sampled(one, events, 0.0, 0.0, None, at)
        if self._listens:  # the first came to nothing, and nobody has heard anything yet
            return
        self._say_events(self._source.connection)
        if self._held and not any(event["type"] == "action" for event in self._events.values()):
            self._source.send("event", id=None, event=self._held)

    def _said_by_source(self, head: dict[str, Any], _: bytes) -> None:
        kind = head.get("kind")
        if kind == "sampled":
            told = head["chunk"], head["events"], head["held_s"], head["late_s"]
            self._sampled(*told, head.get("frame"), head.get("at"))
        elif kind == "resume":
            self._go_on(head["chunk"], head["sampled"])

    def _sampled(
        self, chunk: int, events: list[str], held_s: float, late_s: float, seen: list[float] | None,
        at: list[float] | None = None,
    ) -> None:  # fmt: skip
        order = list(self._events)
        past = max((order.index(id) + 1 for id in events if id in self._events), default=0)
        for id in order[:past]:
            del self._events[id]
        self._heard.sampled(chunk, tuple(events), held_s, late_s, seen and (seen[0], int(seen[1])), at)

    # -- to the one that plays ----------------------------------------------------------------------------------------

    def want(self, codecs: list[str], thin: list[str]) -> None:
        """Pictures are wanted in these codecs; and, in those, a second time for thin lines."""
        if (codecs, thin) != self._codecs:
            self._codecs = codecs, thin
            self._sink.send("want", codecs=codecs, thin=thin)

    def rate(self, rate: Rate, thin: bool) -> None:
        """What the pictures of an encoding may take."""
        if self._rates.get(thin) != rate:
            self._rates[thin] = rate
            self._sink.send("rate", bits_per_second=rate[0], every=rate[1], thin=thin)

    def key(self) -> None:
        """A picture is wanted with which a decoder can begin."""
        self._sink.send("key")

    def mute(self) -> None:
        """Nothing that was sampled so far is to be heard any more."""
        self._seen.mute()
        self._sink.send("mute")

    def unmute(self, chunk: int) -> None:
        """From this chunk on sound is to be heard again."""
        self._seen.unmute(chunk)
        self._sink.send("unmute", chunk=chunk)

    def _greet_sink(self, connection: Connection, again: bool) -> None:
        connection.send("hello", margin_s=self._margin_s, **(self._seen.told() if again else {}))
        connection.send("want", codecs=self._codecs[0], thin=self._codecs[1])
        for thin, (bits_per_second, every) in self._rates.items():
            connection.send("rate", bits_per_second=bits_per_second, every=every, thin=thin)

    def _said_by_sink(self, head: dict[str, Any], body: bytes) -> None:
        kind = head.get("kind")
        if kind in ("video", "sound"):
            codec, key, thin = head.get("codec", "opus"), head.get("key", False), head.get("thin", False)
            packet = Packet(kind, codec, body, head["pts"], key, head["chunk"], thin)
            self._seen.packet(packet)
            self._heard.packet(packet)
        elif kind == "chunk":
            self._seen.chunk(head)
            self._tell_slack(head["chunk"], head["slack_s"])
            self._heard.chunk(head)
        elif kind == "start":
            self._seen.start(head["fps"])
        elif kind == "position":
            self._heard.silent(head["seconds"])
        elif kind == "failed":
            self._heard.failed(head["message"])

    def _tell_slack(self, chunk: int, slack_s: float) -> None:
        """Tell who samples how early a chunk was, and whether that says nothing of its way: the stream stood still."""
        again = {"again": True} if self.waited(chunk) else {}
        late_s = max(0.0, -slack_s) + self._seen.later()
        if self._listens:
            self._source.send("slack", seconds=slack_s - self._margin_s, late_s=late_s, **again)
