"""A session: a stream that one person drives, and those who watch it.

It stands between the two ends of the stream's stages (`serve.link`) and its viewers, and holds nothing back: what a
stage sends is due, and goes to every viewer at once; what a viewer says goes to the stage at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from conf.schema.serve import ServeConfig
from serve.link import Connection, Link
from serve.media import VIDEO_RATE, Packet, Shown, Viewer
from serve.problems import Problem
from serve.served import Served
from serve.tracing import Silent

log = logging.getLogger(__name__)

KEY_EVERY_S = 0.5
"""Between two key frames that are asked for."""
EVENTS = ("prompt", "action", "interrupt")
LONGEST_PROMPT, LONGEST_ID = 2048, 64
"""Bytes of a prompt, characters of an event's id."""
SPEECH_S = 60.0
"""Seconds of sound to be spoken that are held."""
SPEECH_RATE = 16_000
WAITING_EVENTS = 64
"""Events that may wait for a session's stage to be there, or for the chunk that shows them."""
RECENT = 32
"""Chunks of which figures are kept."""
LOUD = 300
"""What a 16-bit sample is above where something is said."""
END_S = 10.0
"""Longest wait for a stream that was told to end."""
LATE_S = 0.001


class Session:
    """One person's stream. All of it belongs to the gateway's loop.

    Args:
        served: the model.
        serve: settings.
        link: where its stages connect.
        metrics: told of what happens (`serve.metrics`).
        late: told (model, seconds) of how late each chunk was.
        over: called once when it has ended.
        clock: seconds, monotonic.

    Attributes:
        id, secret: what it is called, and who knows it.
        state: `queued`, `starting`, `running`, `ending`, `ended`.
        reason: why it ends.
        expires_at: the latest end, in seconds of the epoch.
        report: the stream's part of `report.json`, once it has ended.
    """

    def __init__(
        self,
        served: Served,
        serve: ServeConfig,
        link: Link,
        metrics: Any,
        late: Callable[[str, float], None],
        over: Callable[[Session], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.served, self.serve, self._link, self._metrics, self._over = served, serve, link, metrics, over
        self._late, self._clock = late, clock
        self.id, self.secret = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        self.state, self.reason = "starting", ""
        self.report: dict[str, Any] = {}
        self.done = asyncio.Event()
        self.changes: dict[str, Any] = {}
        """To its stream, while it waits for a place."""
        self.trace, self.traceparent = Silent(), None
        self.place: Callable[[], tuple[int, float] | None] = lambda: None
        """Asked where it is in the queue."""
        self.created = self._active = clock()
        self._length_s = serve.session_s
        self.expires_at = time.time() + self._length_s
        self._unwatched: float | None = self.created
        self._ending_at: float | None = None
        self._number: int | None = None
        self._source: Connection | None = None
        self._sink: Connection | None = None
        self._addresses: list[str] = []
        self._viewers: dict[Viewer, tuple[int | None, int]] = {}
        """With what the line of each takes: bits per second (None: anything), and one picture of how many."""
        self._told_rate: tuple[int | None, int] = (None, 1)
        self._key_at, self._key_later = -KEY_EVERY_S, False
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        """Events before the stage is there."""
        self._accepted: OrderedDict[str, float] = OrderedDict()
        self._interrupts: dict[str, float] = {}
        self._shows: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        """Ids that each chunk shows first, from its sampling until its first frame."""
        self._sampled: OrderedDict[int, float] = OrderedDict()
        self.speech_held_s = 0.0
        self.chunks = self.frames = self.late_chunks = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._pictures: deque[float] = deque(maxlen=256)
        self._latency_s: float | None = None
        self.start: dict[str, Any] = {}

    # -- its life -----------------------------------------------------------------------------------------------------

    async def begin(self, changes: dict[str, Any]) -> None:
        """Open its stream.

        Args:
            changes: to the configuration's stream and source.

        Raises:
            UserError: what is asked for cannot be.
        """
        source = self._link.expect(self._take_source)
        sink = self._link.expect(self._take_sink)
        self._addresses = [source, sink]
        changes = changes | {
            "source": changes.get("source", {}) | {"session": source},
            "sink": {"session": sink},
        }
        try:
            self._number = await self.served.open(self.id, changes)
        except BaseException:
            self._end("failed")
            raise
        if self.reason:  # it was told to end meanwhile
            await self._stop()
        else:
            self.state = "running"

    @property
    def waiting(self) -> tuple[int, float] | None:
        """Its position in the queue, 1 being next, and the seconds to be expected; None: it waits no more."""
        return self.place() if self.state == "queued" else None

    @property
    def number(self) -> int | None:
        """Of its stream; None: it has none yet."""
        return self._number

    def stop(self, reason: str) -> None:
        """End it: what is under way is still played, then `done` is set."""
        if self.reason:
            return
        self.reason, self._ending_at = reason, self._clock()
        log.info("session ends", extra={"session": self.id, "reason": reason})
        if self.state == "queued":
            self._end(reason)
        elif self._number is not None:
            self.state = "ending"
            self._spawn(self._stop())

    async def _stop(self) -> None:
        with suppress(RuntimeError):
            await self.served.stop(self._number)

    def ended(self, report: dict[str, Any]) -> None:
        """Its stream has ended."""
        self.report = report
        if "error" in report:
            log.warning("session failed", extra={"session": self.id, "reason": report["error"].get("line", "")})
        self._end("failed" if "error" in report else self.reason or "limit")

    def abandon(self, reason: str) -> None:
        """Its pipeline is gone: end it at once."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self.state == "ended":
            return
        self.state, self.reason = "ended", self.reason or reason
        for address in self._addresses:
            self._link.forget(address)
        for connection in (self._source, self._sink):
            if connection is not None:
                connection.close()
        for viewer in list(self._viewers):
            viewer.close(self.reason)
        self._viewers.clear()
        self.done.set()
        self._over(self)

    def tick(self, now: float) -> None:
        """Look at its clocks; called a few times a second."""
        if self._ending_at is not None and now - self._ending_at > END_S and self.state != "ended":
            if self._number is not None and now - self._ending_at < 2 * END_S:
                self._spawn(self.served.cancel(self._number))
            else:
                self._end(self.reason)
        elif self.state in ("running", "queued") and not self.reason:
            if self._unwatched is not None and now - self._unwatched > self.serve.lease_s:
                self.stop("lease")
            elif self.state == "running" and now - self._active > self.serve.idle_s:
                self.stop("idle")
            elif now - self.created > self._length_s:
                self.stop("limit")

    def limit(self, seconds: float) -> None:
        """End it after so many seconds at the latest."""
        self._length_s = min(self._length_s, seconds)
        self.expires_at = time.time() + self._length_s

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda t: t.cancelled() or t.exception())  # who is told of it has gone

    # -- viewers ------------------------------------------------------------------------------------------------------

    @property
    def bits_per_second(self) -> int | None:
        """What its pictures are coded with at most; None: what they are worth."""
        return self._told_rate[0]

    @property
    def viewers(self) -> int:
        """How many watch it."""
        return len(self._viewers)

    def attach(self, viewer: Viewer) -> None:
        """Someone watches it from now on.

        Raises:
            Problem: it has ended.
        """
        if self.state == "ended":
            raise Problem("ended", f"session {self.id[:6]} has ended ({self.reason}); open another one")
        self._viewers[viewer] = None, 1
        self._unwatched = None
        self._want()
        self.key_frame("join")

    def detach(self, viewer: Viewer) -> None:
        """Someone watches it no more; the last to go begins the lease."""
        if self._viewers.pop(viewer, None) is None:
            return
        if not self._viewers:
            self._unwatched = self._clock()
        self._want()
        self._tell_rate()

    def key_frame(self, cause: str) -> None:
        """Ask for a picture with which a decoder can begin; not more often than every KEY_EVERY_S."""
        if self._key_later or self._sink is None:
            return
        wait = self._key_at + KEY_EVERY_S - self._clock()
        self._metrics.key_frame(self.served.name, cause)
        if wait <= 0:
            self._ask_key()
        else:
            self._key_later = True
            asyncio.get_running_loop().call_later(wait, self._ask_key)

    def _ask_key(self) -> None:
        self._key_later, self._key_at = False, self._clock()
        if self._sink is not None:
            self._sink.send("key")

    def follow(self, viewer: Viewer, bits_per_second: int | None, every: int = 1) -> None:
        """What a viewer's line takes. The pictures follow who has the thinnest."""
        if viewer in self._viewers:
            self._viewers[viewer] = bits_per_second, every
            self._tell_rate()

    def _tell_rate(self) -> None:
        bits = min((bits for bits, _ in self._viewers.values() if bits is not None), default=None)
        rate = bits, max((every for _, every in self._viewers.values()), default=1)
        if rate != self._told_rate:
            self._told_rate = rate
            if self._sink is not None:
                self._sink.send("rate", bits_per_second=rate[0], every=rate[1])

    def _want(self) -> None:
        if self._sink is not None:
            self._sink.send("want", codecs=sorted({viewer.codec for viewer in self._viewers} - {""}))

    def _notice(self, message: dict[str, Any]) -> None:
        for viewer in list(self._viewers):
            viewer.notice(message)

    def notice(self, kind: str, message: str, **more: Any) -> None:
        """Tell everyone who watches: `{"type": "session.notice", "kind": ..., "message": ...}`."""
        self._notice({"type": "session.notice", "kind": kind, "message": message, **more})

    # -- what a person does -------------------------------------------------------------------------------------------

    def event(self, id: Any, event: Any) -> None:
        """Something was typed, pressed or said to be enough; its id comes back on the chunk that first shows it.

        Raises:
            Problem: there is no such event, or the model has no use for it.
        """
        if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID:
            raise Problem("bad_request", f"event_id: must be text of 1 to {LONGEST_ID} characters; number your events")
        event = self._checked(event)
        if self.state not in ("starting", "running", "queued"):
            raise Problem("ended", f"session {self.id[:6]} is ending ({self.reason}); open another one")
        self._active = now = self._clock()
        self._accepted[id] = now
        while len(self._accepted) > WAITING_EVENTS:
            self._accepted.popitem(last=False)
        if event["type"] == "interrupt":
            self.speech_held_s = 0.0
            self._interrupts[id] = now
            if self._sink is not None:
                self._sink.send("mute")
        if self._source is None:
            del self._waiting[: -(WAITING_EVENTS - 1)]
            self._waiting.append((id, event))
        else:
            self._source.send("event", id=id, event=event)

    def _checked(self, event: Any) -> dict[str, Any]:
        offer = self.served.offer
        if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
            raise Problem("bad_request", 'event: has no type; give {"type": "action", "action": ...} or the like')
        if kind == "image":
            rule = "a picture is where a session begins, and is not changed later"
            raise Problem("not_while_running", f"event: {rule}; open another session with it")
        if kind not in EVENTS:
            raise Problem("bad_request", f"event {kind[:40]!r}: there is no such event; use one of {', '.join(EVENTS)}")
        if kind == "prompt":
            prompt = event.get("prompt")
            if not offer["prompts"]:
                raise Problem("unprocessable", f"event prompt: {self.served.name} takes no prompts; leave it out")
            if not isinstance(prompt, str) or len(prompt.encode(errors="replace")) > LONGEST_PROMPT or _broken(prompt):
                raise Problem("bad_request", f"event prompt: must be plain text of at most {LONGEST_PROMPT} bytes")
            return {"type": kind, "prompt": prompt}
        if kind == "action":
            if (action := event.get("action")) not in offer["actions"]:
                known = ", ".join(offer["actions"]) or "none"
                raise Problem("unprocessable", f"event action {str(action)[:40]!r}: it is not known; use {known}")
            return {"type": kind, "action": action}
        return {"type": kind}

    def sound(self, pcm: bytes, at: int) -> None:
        """A microphone's sound: 16-bit 16 kHz mono, from position `at` on the microphone's own time line."""
        if max(memoryview(pcm).cast("h"), default=0) > LOUD:
            self._active = self._clock()
        if self._source is not None and self.served.offer["hears"]:
            self._source.send("sound", pcm, at=at)

    def speech(self, pcm: bytes) -> float:
        """Sound to be spoken, likewise, in its order; returns the seconds that are held with it.

        Raises:
            Problem: it would be more than SPEECH_S, or the model does not listen.
        """
        if not self.served.offer["hears"]:
            raise Problem("unprocessable", f"session.audio: {self.served.name} takes no sound; leave it out")
        seconds = len(pcm) / 2 / SPEECH_RATE
        if self.speech_held_s + seconds > SPEECH_S:
            rule = f"{self.speech_held_s:.1f} s are held, and at most {SPEECH_S:g} s may be"
            raise Problem("audio_full", f"session.audio: {rule}; send the rest later", retry_after_s=1.0)
        self._active = self._clock()
        if self._source is None:
            raise Problem("audio_full", "session.audio: the session is starting; send it again", retry_after_s=0.5)
        self.speech_held_s += seconds
        self._source.send("speech", pcm)
        return self.speech_held_s

    # -- stages -------------------------------------------------------------------------------------------------------

    async def _take_source(self, connection: Connection) -> None:
        self._source = connection
        for id, event in self._waiting:
            connection.send("event", id=id, event=event)
        self._waiting.clear()
        while (message := await connection.receive()) is not None:
            head = message[0]
            if head.get("kind") == "sampled":
                self._was_sampled(head)
        self._source = None

    def _was_sampled(self, head: dict[str, Any]) -> None:
        chunk, ids = head["chunk"], tuple(head["events"])
        self.speech_held_s = head["held_s"]
        self._shows[chunk], self._sampled[chunk] = ids, self._clock()
        for held in (self._shows, self._sampled):
            while len(held) > WAITING_EVENTS:
                held.popitem(last=False)
        if head["late_s"] > 0:
            self._metrics.audio_late(self.served.name, head["late_s"])
        for id in ids:
            if self._interrupts.pop(id, None) is not None and self._sink is not None and not self._interrupts:
                self._sink.send("unmute", chunk=chunk)

    async def _take_sink(self, connection: Connection) -> None:
        self._sink = connection
        connection.send("hello", margin_s=self.serve.margin_s)
        self._want()
        connection.send("rate", bits_per_second=self._told_rate[0], every=self._told_rate[1])
        while (message := await connection.receive()) is not None:
            head, body = message
            kind = head.get("kind")
            if kind in ("video", "sound"):
                self._packet(kind, head, body)
            elif kind == "chunk":
                self._chunk(head)
            elif kind == "start":
                self.start = {name: head[name] for name in ("fps", "width", "height", "sound")}
            elif kind == "position":
                message = "the sound was cut off"
                self.notice("interrupted", message, position_s=round(head["seconds"], 3))
                if self._interrupts:
                    self._metrics.interrupt(self.served.name, self._clock() - min(self._interrupts.values()))
            elif kind == "failed":
                log.error("session cannot be coded: %s", head["message"], extra={"session": self.id})
                self.stop("failed")
        self._sink = None

    def _packet(self, kind: str, head: dict[str, Any], body: bytes) -> None:
        packet = Packet(kind, head.get("codec", "opus"), body, head["pts"], head.get("key", False), head["chunk"])
        if kind == "video":
            self._pictures.append(self._clock())
        for viewer in list(self._viewers):
            if kind == "sound" or viewer.codec == packet.codec:
                viewer.packet(packet)

    def _chunk(self, head: dict[str, Any]) -> None:
        now, chunk = self._clock(), head["chunk"]
        events = self._shows.pop(chunk, ())
        oldest = min((self._accepted.pop(id) for id in events if id in self._accepted), default=None)
        late_s = max(0.0, -head["slack_s"])
        latency_s = None if oldest is None else now - oldest
        shown = Shown(chunk, head["frames"], head["first_frame"], head["pts"], events, latency_s, late_s)
        if self._source is not None:
            self._source.send("slack", seconds=head["slack_s"] - self.serve.margin_s)
        self._count(shown, head["slack_s"], now)
        for viewer in list(self._viewers):
            viewer.shown(shown)

    def _count(self, shown: Shown, slack_s: float, now: float) -> None:
        name = self.served.name
        if not self.chunks:
            self._metrics.first_frame(name, now - self.created)
        self.chunks, self.frames = self.chunks + 1, self.frames + shown.frames
        self._late(name, shown.late_s)
        if shown.late_s > LATE_S:
            self.late_chunks += 1
        if shown.latency_s is not None:
            self._latency_s = shown.latency_s
            self._metrics.control(name, shown.latency_s)
        sampled = self._sampled.pop(shown.chunk, None)
        made_s = None if sampled is None else max(0.0, now - sampled - max(0.0, slack_s))
        self._metrics.chunk(name, shown.frames, made_s, shown.late_s)
        self.trace.chunk(shown, None if sampled is None else now - sampled)
        self._recent.append(
            {
                "chunk": shown.chunk,
                "made_s": made_s and round(made_s, 4),
                "slack_s": round(slack_s, 4),
                "shown_s": round(shown.pts / VIDEO_RATE, 3),
                "events": len(shown.events),
            }
        )

    # -- how it stands ------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What `GET /v1/sessions/{id}` and the page show."""
        now = self._clock()
        seen = sum(at > now - 2.0 for at in self._pictures)
        digest = self.report.get("latents_sha256")
        return ({"latents_sha256": digest} if digest else {}) | {
            "id": self.id,
            "model": self.served.name,
            "state": self.state,
            "reason": self.reason or None,
            "chunks": self.chunks,
            "frames": self.frames,
            "fps": seen / 2.0,
            "latency_s": self._latency_s and round(self._latency_s, 4),
            "late_chunks": self.late_chunks,
            "viewers": len(self._viewers),
            "bits_per_second": self._told_rate[0],
            "audio_held_s": round(self.speech_held_s, 3),
            "seconds_left": max(0.0, round(self._length_s - (now - self.created), 1)),
            "expires_at": round(self.expires_at, 3),
            "recent": list(self._recent)[-8:],
        }


def _broken(text: str) -> bool:
    """Whether a text holds what no encoder takes."""
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)
