"""A session: a stream that one person drives, and those who watch it.

It stands between the two ends of the stream's stages and its viewers, and holds nothing back: what a stage sends is
due, and goes to every viewer at once; what a viewer says goes to the stage at once. Where its pipeline recovers from a
loss, its picture stands still meanwhile, and so do its clocks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from conf.schema.serve import ServeConfig
from serve.asked import Asked, checked, unread
from serve.camera import Sighted, check
from serve.classes import Line, Rate, sort, thinnest
from serve.ends import Ends
from serve.figures import Figures
from serve.link import Link
from serve.media import Packet, Shown, Viewer
from serve.problems import Problem
from serve.served import Served
from serve.term import Term
from serve.told import Told
from stages.sinks.coded import most_bits

log = logging.getLogger(__name__)

KEY_EVERY_S = 0.5
"""Between two key frames that are asked for."""
SPEECH_S, SPEECH_RATE = 60.0, 16_000
"""Seconds of sound to be spoken that are held, and its samples per second."""
LOUD = 300
"""What a 16-bit sample is above where something is said."""
TURN_S = 1.0
"""Seconds after which another microphone is listened to."""
WAIT_S = 30.0
"""Longest wait for a stage that has gone with its process, and of which another is to come."""
END_S = 10.0
"""Longest wait for a stage that was told to end; then its stream is cancelled."""
STUCK_S = 30.0
"""After which it is said in the log that a stream has not ended. Its place stays taken: so do its stages."""


class Session:
    """One person's stream. All of it belongs to the gateway's loop.

    Args:
        served: the model.
        serve: settings.
        link: where its stages connect.
        told: of what happens.
        over: called once, when it has ended.
        clock: seconds, monotonic.

    Attributes:
        id, secret: what it is called, and who knows it.
        state: `queued`, `starting`, `running`, `ending`, `ended`.
        reason: why it ends; empty: it does not.
        expires_at: the latest end, in seconds of the epoch.
        number: of its stream; None: it has none yet.
        seed: of its stream, likewise.
        place: asked where it is in the queue, while it waits there.
        postponed: told by how many seconds it may go on longer, since it stood still.
        report: the stream's part of `report.json`, once it has ended.
        done: set when it has ended.
    """

    def __init__(
        self,
        served: Served,
        serve: ServeConfig,
        link: Link,
        told: Told,
        over: Callable[[Session], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.served, self.serve, self.told, self._over, self._clock = served, serve, told, over, clock
        self.id, self.secret = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        self.state, self.reason, self.number = "starting", "", None
        self.place: Callable[[], tuple[int, float] | None] = lambda: None
        self.postponed: Callable[[float], None] = lambda seconds: None
        self.report: dict[str, Any] = {}
        self.done = asyncio.Event()
        self._term, self._figures = Term(serve, clock), Figures(clock)
        self.expires_at = time.time() + serve.session_s
        self._ending: float | None = None
        """Since when its stream is to end."""
        self._cancelled = self._stuck = False
        self.seed: int | None = None
        self._unread: list[str] = []
        """Words of the prompt that it begins with that mean nothing to the model, until somebody was told."""
        self._ends, self._asked = Ends(link, serve.margin_s, self, clock), Asked()
        self._viewers: dict[Viewer, Line] = {}
        self._rate: Rate = None, 1
        """Of the encoding that all have but those with thin lines."""
        self._key_at, self._key_later = clock() - KEY_EVERY_S, False
        self._held_s = 0.0
        self._speaker: Viewer | None = None
        self._heard_at = 0.0
        self._camera = Sighted()
        self.peers: set[Viewer] = set()
        """Viewers over WebRTC, those that are still connecting among them (`serve.webrtc`)."""
        self._work: set[asyncio.Task] = set()

    # -- its life -----------------------------------------------------------------------------------------------------

    async def begin(self, changes: dict[str, Any], picture: bytes = b"") -> None:
        """Open its stream.

        Args:
            changes: to the configuration's stream, and as `source` to that.
            picture: that it begins with, as PNG; empty: the one of the configuration.

        Raises:
            UserError: what is asked for cannot be.
            RuntimeError: the pipeline is gone.
        """
        self.state, self.seed = "starting", changes.get("seed")
        self._unread = unread(changes.get("prompt", ""), self.served.offer)
        self._term.begin()
        self.expires_at = time.time() + self._term.length_s
        ends = self._ends.open(picture, once=not self.served.recovers)
        source = {"source": changes.get("source", {}) | ends["source"]}
        try:
            self.number = await self.served.open(self.id, changes | ends | source)
        except BaseException:
            self._end("failed")
            raise
        if self.state == "ended":  # its model was lost meanwhile
            await self._stop()
            return
        self.told.began()
        if self.reason:  # it was told to end meanwhile
            self.state, self._ending = "ending", self._clock()
            await self._stop()
        else:
            self.state = "running"
            if self.served.frozen is not None:
                self.freeze(self.served.frozen)

    def limit(self, seconds: float) -> None:
        """It is to last so long at most."""
        self._term.limit(seconds)
        self.expires_at = time.time() + self._term.length_s

    def stop(self, reason: str) -> None:
        """End it: what is under way is still played, then `done` is set."""
        if self.reason:
            return
        self.reason, self._ending = reason, self._clock()
        if self.state == "queued":
            self._end(reason)
        elif self.number is not None:
            self.state = "ending"
            self._spawn(self._stop())

    async def _stop(self) -> None:
        with suppress(RuntimeError):
            await self.served.stop(self.number)

    def ended(self, report: dict[str, Any]) -> None:
        """Its stream has ended."""
        self.report = report
        if "error" in report:
            log.warning("session fails", extra={"session": self.id, "kind": report["error"].get("kind")})
        self._end("failed" if "error" in report else self.reason or "limit")

    def abandon(self, reason: str) -> None:
        """Its pipeline is gone, or the server: end it at once."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self.state == "ended":
            return
        self.state, self.reason = "ended", self.reason or reason
        known = {"session": self.id, "model": self.served.name, "reason": self.reason, "chunks": self._figures.chunks}
        log.info("session ends", extra=known)
        try:
            self._ends.close()
            for viewer in list(self._viewers):
                self._let_go(viewer, self.reason)
            self._viewers.clear()
            self.told.ended(self.reason)
        finally:  # whatever goes wrong: nobody else would give its place back
            self.done.set()
            self._over(self)

    def tick(self, now: float) -> None:
        """Look at its clocks; called a few times a second."""
        if self.state == "ended":
            return
        if self._ending is not None:
            self._hurry(now - self._ending)
        elif self.state in ("running", "queued") and not self.reason:
            if self._ends.still and (self._ends.gone_s(now) or 0.0) > WAIT_S:
                self.failed(f"its stage has gone, and has not come back for {WAIT_S:g} s")
            elif reason := self._term.over(now, self.state == "running"):
                self.stop(reason)
            elif self.state == "running" and (warning := self._term.warning(now)):
                self.notice("expiring", warning[1], seconds_left=round(warning[0], 1))

    def _hurry(self, seconds: float) -> None:
        """Its stream has been about to end for so long. The place is free once that has ended, and not before."""
        if seconds > END_S and self.number is not None and not self._cancelled:
            self._cancelled = True
            self._spawn(self.served.cancel(self.number))
        if seconds > STUCK_S and not self._stuck:
            self._stuck = True
            log.error("the stream of a session does not end; its place stays taken", extra={"session": self.id})

    def freeze(self, why: str) -> None:
        """Its pipeline goes from one generation to the next: the picture stands still, and so do its clocks."""
        if self._ends.still or self.reason or self.state not in ("starting", "running"):
            return
        log.info("session stands still: %s", why, extra={"session": self.id})
        self._term.stand()
        self._ends.stand(self._asked.last)
        self.notice("frozen", "one moment: the stream goes on")

    def _go_on(self) -> None:
        """A picture leaves: if all is there again, it is the first new one."""
        if self.served.frozen is not None or self._ends.gone_s(0.0) is not None:
            return
        stood_s, self._ends.still = self._term.go_on(), False
        self.expires_at += stood_s
        self.postponed(stood_s)
        self.told.frozen(stood_s)
        log.info("session goes on after %.2f s", stood_s, extra={"session": self.id})
        self.notice("resumed", f"the stream goes on, after {stood_s:.1f} s", frozen_s=round(stood_s, 3))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(lambda t: self._work.discard(t) or t.cancelled() or t.exception())

    @property
    def waiting(self) -> tuple[int, float] | None:
        """Its position in the queue, 1 being next, and the seconds to be expected; None: it waits no more."""
        return self.place() if self.state == "queued" else None

    # -- viewers ------------------------------------------------------------------------------------------------------

    def attach(self, viewer: Viewer) -> None:
        """Someone watches it from now on.

        Raises:
            Problem: it has ended.
        """
        if self.state == "ended":
            raise Problem("ended", f"session {self.id[:6]} has ended ({self.reason}); open another one")
        self._viewers[viewer] = Line()
        self._term.watched(len(self._viewers))
        self._want()
        self.key_frame("join")

    def detach(self, viewer: Viewer) -> None:
        """Someone watches it no more; the last to go begins the lease."""
        if self._viewers.pop(viewer, None) is None:
            return
        self._term.watched(len(self._viewers))
        self._tell_rate()
        self._want()

    def _want(self) -> None:
        rich = {viewer.codec for viewer, line in self._viewers.items() if not line.thin} - {""}
        thin = {viewer.codec for viewer, line in self._viewers.items() if line.thin or line.seen} - {""}
        self._ends.want(sorted(rich), sorted(thin))

    def key_frame(self, cause: str) -> None:
        """Ask for a picture with which a decoder can begin; not more often than every KEY_EVERY_S."""
        if self._key_later:
            return
        self.told.key_frame(cause)
        wait = self._key_at + KEY_EVERY_S - self._clock()
        if wait <= 0:
            self._ask_key()
        else:
            self._key_later = True
            asyncio.get_running_loop().call_later(wait, self._ask_key)

    def _ask_key(self) -> None:
        self._key_later, self._key_at = False, self._clock()
        self._ends.key()

    def follow(self, viewer: Viewer, bits_per_second: int | None, every: int = 1) -> None:
        """What a viewer's line takes. The pictures follow who has the thinnest; who has far less than the best, has
        an encoding of its own with its like (`serve.classes`)."""
        if viewer in self._viewers:
            self._viewers[viewer].rate = bits_per_second, every
            self._tell_rate()

    def _tell_rate(self) -> None:
        offer, lines = self.served.offer, [line for viewer, line in self._viewers.items() if viewer.codec]
        changed = sort(lines, most_bits(offer["height"], offer["width"], offer["fps"]))
        self._rate = thinnest(lines, False) or (None, 1)
        self._ends.rate(self._rate, False)
        if (rate := thinnest(lines, True)) is not None:
            self._ends.rate(rate, True)
        if changed:
            self._want()
            self.key_frame("rate")

    @property
    def speech_held_s(self) -> float:
        """Seconds of sound that is still to be spoken."""
        return self._held_s

    @property
    def bits_per_second(self) -> int | None:
        """What its pictures are coded with at most; None: what they are worth."""
        return self._rate[0]

    def notice(self, kind: str, message: str, **more: Any) -> None:
        """Tell everyone who watches: `{"type": "session.notice", "kind": ..., "message": ...}`."""
        for viewer in list(self._viewers):
            self._to(viewer, viewer.notice, {"type": "session.notice", "kind": kind, "message": message, **more})

    def _puzzled(self, unknown: list[str]) -> None:
        self.notice("words", f"{self.served.name} does not know {', '.join(unknown)}")

    def dropped(self, frames: int) -> None:
        """A viewer was not sent so many pictures, since it did not take those before them."""
        self.told.dropped(frames, "queue")

    # -- what a person does -------------------------------------------------------------------------------------------

    def event(self, id: Any, event: Any) -> None:
        """Something was typed, pressed or said to be enough; its id comes back on the chunk that first shows it.

        Raises:
            Problem: there is no such event, or the model has no use for it, or the session ends.
        """
        event = checked(id, event, self.served.offer)
        if self.state not in ("starting", "running", "queued"):
            raise Problem("ended", f"session {self.id[:6]} is ending ({self.reason}); open another one")
        self._term.acted()
        number = self._asked.accept(id, event, self._clock())
        if event["type"] == "interrupt":
            self._held_s = 0.0
            self._ends.mute()
        elif event["type"] == "prompt" and (unknown := unread(event["prompt"], self.served.offer)):
            self._puzzled(unknown)
        self._ends.event(number, event)

    def sound(self, pcm: bytes, at: int, by: Viewer | None) -> None:
        """A microphone's sound: 16-bit 16 kHz mono, from position `at` on the microphone's own time line.

        One is heard at a time: another viewer's once this one's has not come for TURN_S.
        """
        now = self._clock()
        if self._speaker is not by and self._speaker in self._viewers and now - self._heard_at < TURN_S:
            return
        self._speaker, self._heard_at = by, now
        if max(memoryview(pcm).cast("h"), default=0) > LOUD:
            self._term.acted()
        if self.served.offer["hears"]:
            self._ends.sound(pcm, at)

    def frame(self, jpeg: bytes, at: float, by: Viewer | None) -> None:
        """A camera's picture, as JPEG, taken at `at` seconds of the camera's own clock. Of several viewers' cameras one
        is looked at, as of microphones.

        Raises:
            Problem: it is too large or no JPEG, or the model takes none.
        """
        if not self.served.offer["sees"]:
            raise Problem("unprocessable", f"session.frame: {self.served.name} takes no pictures; leave them out")
        check(jpeg)
        now = self._clock()
        if self._camera.turn(by, self._viewers, now):
            self._term.acted()
            if self._ends.frame(jpeg, at):
                self._camera.accept(at, now)

    def speech(self, pcm: bytes) -> float:
        """Sound to be spoken, likewise, in its order; returns the seconds that are held with it.

        Raises:
            Problem: it would be more than SPEECH_S, or the model does not listen.
        """
        if not self.served.offer["hears"]:
            raise Problem("unprocessable", f"session.audio: {self.served.name} takes no sound; leave it out")
        seconds = len(pcm) / 2 / SPEECH_RATE
        if self._held_s + seconds > SPEECH_S:
            rule = f"{self._held_s:.1f} s are held, and at most {SPEECH_S:g} s may be"
            raise Problem("audio_full", f"session.audio: {rule}; send the rest later", retry_after_s=1.0)
        if not self._ends.speech(pcm):
            what = "stands still" if self._ends.still else "is starting"
            raise Problem("audio_full", f"session.audio: the session {what}; send it again", retry_after_s=0.5)
        self._term.acted()
        self._held_s += seconds
        return self._held_s

    # -- what stages say (`serve.ends.Listener`) ----------------------------------------------------------------------

    def sampled(
        self, chunk: int, events: tuple[str, ...], held_s: float, late_s: float, seen: tuple[float, int] | None,
        at: list[float] | None = None,
    ) -> None:  # fmt: skip
        """See `Listener`."""
        if chunk <= self._asked.last:  # it is told again
            return
        if seen:
            self._camera.sampled(chunk, *seen)
        self._held_s = held_s
        self.told.sound_late(late_s)
        if self._asked.sampled(chunk, events, self._clock(), at):
            self._ends.unmute(chunk)

    def again(self, chunk: int) -> None:
        """See `Listener`."""
        self._asked.again(chunk)
        self._held_s = 0.0

    def packet(self, packet: Packet) -> None:
        """See `Listener`."""
        if self._ends.still and packet.kind == "video":
            self._go_on()
        if packet.kind == "video" and not packet.thin:
            self._figures.picture(packet)
        for viewer, line in list(self._viewers.items()):
            seen = line.seen
            if (packet.kind == "sound" and viewer.codec) or (viewer.codec == packet.codec and line.takes(packet)):
                self._to(viewer, viewer.packet, packet)
            if seen != line.seen:  # it may have been the last to be sent the other one
                self._want()

    def _to(self, viewer: Viewer, tell: Callable[[Any], None], what: Any) -> None:
        """Tell a viewer; whatever that brings about, the others are told."""
        try:
            tell(what)
        except Exception:
            log.exception("viewer %s cannot go on", viewer.id)
            self.detach(viewer)
            self._let_go(viewer, "failed")

    def _let_go(self, viewer: Viewer, reason: str) -> None:
        try:
            viewer.close(reason)
        except Exception:
            log.exception("viewer %s cannot be closed", viewer.id)

    def chunk(self, head: dict[str, Any]) -> None:
        """See `Listener`."""
        now, slack_s, stood = self._clock(), head["slack_s"], self._ends.waited(head["chunk"])
        if stood:  # which is not the fault of who computes
            slack_s = max(0.0, slack_s)
        if self._ends.still:
            self._go_on()
        events, accepted, sampled, at = self._asked.shown(head["chunk"])
        latency_s = None if accepted is None else now - accepted
        late_s = max(0.0, -slack_s)
        sight = self._camera.shown(head["chunk"], self.served.offer["fps"], now)
        place = head["chunk"], head["frames"], head["first_frame"], head["pts"]
        shown = Shown(*place, events, latency_s, late_s, sight, at)
        sampled_s = None if sampled is None or stood else now - sampled
        made_s = None if sampled_s is None else max(0.0, sampled_s - max(0.0, slack_s))
        self.told.chunk(shown, made_s, sampled_s, None if self._figures.chunks else self._term.age_s)
        thinned = self._rate[1] > 1 and any(viewer.codec for viewer in self._viewers)
        self.told.dropped(self._figures.chunk(shown, made_s, slack_s, thinned), "rate")
        for viewer in list(self._viewers):
            self._to(viewer, viewer.shown, shown)
        if self._unread and self._viewers:
            unknown, self._unread = self._unread, []
            self._puzzled(unknown)

    def silent(self, seconds: float) -> None:
        """See `Listener`."""
        self.notice("interrupted", "the sound was cut off", position_s=round(seconds, 3))
        if (at := self._asked.interrupted_at) is not None:
            self.told.interrupted(self._clock() - at)

    def gone(self, why: str) -> None:
        """See `Listener`."""
        if self.served.recovers:
            self.freeze(why)
        else:
            self.failed(why)

    def failed(self, why: str) -> None:
        """See `Listener`."""
        if not self.reason:
            log.error("session cannot go on: %s", why, extra={"session": self.id})
            self.stop("failed")

    # -- how it stands ------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What `GET /v1/sessions/{id}` and the page show."""
        digest, waiting = self.report.get("latents_sha256"), self.waiting
        known = {"latents_sha256": digest} if digest else {}
        if waiting is not None:
            known |= {"position": waiting[0], "wait_s": round(waiting[1])}
        return known | {
            "id": self.id,
            "model": self.served.name,
            "seed": self.seed,
            "state": self.state,
            "reason": self.reason or None,
            **self._figures.told(),
            "viewers": len(self._viewers),
            "bits_per_second": self._rate[0],
            "audio_held_s": round(self._held_s, 3),
            "seconds_left": max(0.0, round(self._term.length_s - self._term.age_s, 1)),
            "expires_at": round(self.expires_at, 3),
            **({"frozen": True} if self._ends.still else {}),
        }
