"""A viewer behind a WebSocket: a session's packets as fragmented mp4, and what is known of each chunk as JSON."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serve.fragments import Fragments
from serve.media import VIDEO_RATE, Packet, Shown, Viewer
from serve.outbox import Outbox
from serve.problems import Problem
from serve.tcp_rate import TcpRate

if TYPE_CHECKING:
    from serve.session import Session

NORMAL, AWAY, POLICY, TOO_BIG, BROKEN, AGAIN = 1000, 1001, 1008, 1009, 1011, 1013
"""Codes that a connection is closed with (RFC 6455, 7.4.1, and the IANA registry)."""
CODES = {"full": AGAIN, "too_many": AGAIN, "not_ready": AGAIN, "draining": AWAY, "too_large": TOO_BIG, "failed": BROKEN}
"""By the type of the problem that ends it; all others are the caller's."""
FIGURES_S, QUEUED_S = 1.0, 0.25
"""Between two messages of figures, and between two looks at the queue."""
TRIM_S = 15.0
"""Between key frames that a viewer has in any case: browsers let go of what is before one, and of nothing else."""
UNSAID = 64
"""Chunks that may be shown before the first picture that a viewer can begin with."""


class Socket(Viewer):
    """Turns what the session gives into messages, and leaves the sending to who takes them from its outbox.

    Args:
        session: that is watched, or waited for.
        media: whether pictures and sound are wanted here; otherwise only messages.
        clock: seconds, monotonic.
    """

    def __init__(self, session: Session, media: bool, clock: Callable[[], float] = time.monotonic):
        self.id = f"socket-{secrets.token_hex(4)}"
        self.codec = "h264" if media else ""
        self.outbox = Outbox(clock)
        self._session, self._clock = session, clock
        self._offer: dict[str, Any] = session.served.offer
        self._fragments = self._new_fragments() if media else None
        self._rate = TcpRate()
        self._begun, self._trimmed = False, clock()
        self._place: tuple[int, int] | None = None
        self._unsaid: deque[Shown] = deque(maxlen=UNSAID)

    def tell(self) -> float:
        """Say how the session stands; returns the seconds until it is to be said again."""
        if self._session.state == "queued":
            self._queue()
            return QUEUED_S
        self._begin()
        if self._fragments is not None and self._clock() - self._trimmed > TRIM_S:
            self._trimmed = self._clock()
            self._session.key_frame("trim")
        self.outbox.say({"type": "session.figures", **self._session.figures()})
        return FIGURES_S

    def packet(self, packet: Packet) -> None:
        """Mux it; who does not take what was muxed is skipped ahead to the next key frame."""
        if self._fragments is None:
            return
        self._begin()
        begun = self._fragments.begun
        made = self._fragments.add(packet)
        if made is None:
            # Not for one who is still stuck: other viewers would pay for it.
            if packet.kind == "video" and self._fragments.waiting and not self.outbox.lag_s:
                self._session.key_frame("queue" if begun else "join")
        elif begun == self._fragments.begun:
            self._play(made)
        else:
            self._begin_media(made)

    def shown(self, shown: Shown) -> None:
        """Say what is known of a chunk, behind all that was before it."""
        self._begin()
        if self._fragments is None:
            self._say_chunk(shown, 0)
        elif self._fragments.origin is None:
            self._unsaid.append(shown)  # its time is not known before the first picture is
        else:
            if rest := self._fragments.flush():
                self._play(rest)
            self._say_chunk(shown, self._fragments.origin)

    def notice(self, message: dict[str, Any]) -> None:
        """Pass it on."""
        self.outbox.say(message)

    def close(self, reason: str) -> None:
        """Send what is left and hang up, with the session's end, or with why it goes on without this viewer."""
        if self._session.state != "ended":
            self.fail(Problem.of_viewer(reason))
            return
        if self._fragments is not None and (rest := self._fragments.flush()):
            self.outbox.play(rest)
        figures = self._session.figures()
        known = {name: figures[name] for name in ("chunks", "frames", "latents_sha256") if name in figures}
        self.outbox.say({"type": "session.done", "reason": reason, **known})
        self.outbox.end(AWAY if reason == "drained" else NORMAL)

    def fail(self, problem: Problem) -> None:
        """End the connection, not the session, with what is wrong."""
        self.outbox.say(problem.message)
        self.outbox.end(POLICY if problem.type == "too_many" else CODES.get(problem.type, POLICY))

    def _queue(self) -> None:
        if (place := self._session.waiting) is None:
            return
        position, wait_s = place[0], round(place[1])
        if (position, wait_s) != self._place:
            self._place = position, wait_s
            known = {"id": self._session.id, "secret": self._session.secret}
            self.outbox.say({"type": "session.queued", **known, "position": position, "wait_s": wait_s})

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        session = self._session
        known = {"id": session.id, "secret": session.secret, "model": self._offer["id"], "offer": self._offer}
        self.outbox.say({"type": "session.started", **known, "expires_at": session.expires_at})

    def _begin_media(self, made: bytes) -> None:
        form = {name: self._offer[name] for name in ("width", "height", "fps")}
        self.outbox.say({"type": "video.start", "mime": self._fragments.mime, **form})
        self.outbox.begin(made)
        for shown in self._unsaid:
            self._say_chunk(shown, self._fragments.origin)
        self._unsaid.clear()

    def _play(self, made: bytes) -> None:
        now = self._clock()
        self.outbox.play(made)
        self._rate.given(now, len(made))
        if (rate := self._rate.look(now, self.outbox.lag_s)) is not None:
            self._session.follow(self, rate.bits_per_second, rate.every)
        if self.outbox.over:
            self.outbox.empty()
            self._fragments.skip()

    def _say_chunk(self, shown: Shown, origin: int) -> None:
        known = shown.told | {"pts_s": round((shown.pts - origin) / VIDEO_RATE, 6)}
        known |= {"audio_held_s": round(self._session.speech_held_s, 3)}
        self.outbox.say({"type": "video.chunk_metadata", **known})

    def _new_fragments(self) -> Fragments:
        offer = self._offer
        return Fragments(offer["width"], offer["height"], offer["fps"], offer["hears"])
