"""What a person at a gateway says, shows, presses and types: a live source that is never waited for.

The gateway sends, on the connection of `source.session`,

    hello {}          before all else; with it the picture to begin with, as PNG, or nothing: that of `source.image`
    sound {at}        PCM of a microphone, 16-bit 16 kHz mono, from position `at` on its own time line
    speech {}         likewise, to be spoken when its turn comes, however early it is sent
    frame {at}        a camera's picture, as JPEG, taken at `at` seconds of the camera's own clock
    event {id, event} `{"type": "prompt", "prompt": ...}`, `{"type": "interrupt"}`, `{"type": "action", "action": ...}`
                      or what else `stages.controls` knows: `{"type": "action", "keys": [...], "mouse": [...]}`
    slack {seconds, late_s}   how long before its frames were due a chunk was there, and by how much all that follows
                              was put off for it
    end {}            the session is over

and is told `end {}` when the stream ends in order, and of each chunk, when it is sampled, `sampled {chunk, events,
held_s, silence_s, late_s, frame, at}`: the ids of all that first shows in it, the speech that is held, the sound that
was missing or too late by then, of a camera [when the first picture was taken that is new in it, which of its video
frames shows that], or null, and in a world that is seen through a camera of its own, where that is in the chunk's last
frame (`stages.views.where`), or null. After `end` the gateway hangs up. One that is gone has ended the stream.

A source that goes on for another, whose process is gone, says first `resume {chunk, sampled}`: the next chunk that it
samples, and for chunks before it, [chunk, events, at] as in `sampled`, of which the gateway may have missed some. It
hears then what was said and not sampled yet, and what is held: as an event whose `id` is null. One that leaves without
a word is followed by such a one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from conf.errors import UserError
from stages.controls import Controls, Row
from stages.link import LAST_S, Wire, connect
from stages.sources.audio import NOTHING, RATE
from stages.sources.camera import Camera, Shot
from stages.sources.fitting import Fit
from stages.sources.microphone import Microphone, Speech
from stages.sources.session_parts import SessionActions, SessionFrames, SessionSound

log = logging.getLogger(__name__)

HELLO_S = 10.0
"""Longest wait for the gateway's first word."""


class SessionSource:
    """One session's end at the encode stage.

    Args:
        address: of the gateway.
        known: what can be pressed, or actions of which one holds at a time, the first that of none; empty: nothing.
        stop: set when the session ends.
        steer: takes a prompt, when it was accepted, and a number that rises.
        slack: takes the seconds by which a chunk was early, below 0 where it was late; and those by which all that
            follows is shown later because of it.
        clock: seconds, monotonic.
        resume: what is said first by a source that goes on for another; None: it is the first.

    Attributes:
        sound: what is heard, as a source; reads silence where nothing came.
        actions: what is pressed, likewise.
        frames: what a camera sees, likewise; None: it is not asked for (`film`).
        picture: that the stream begins with, as PNG; empty: none was sent.

    Raises:
        UserError: nobody answers at the address, or as a gateway does.
    """

    def __init__(
        self,
        address: str,
        known: Controls | Iterable[str],
        stop: threading.Event,
        steer: Callable[[str, float, int], None],
        slack: Callable[[float, float], None],
        clock: Callable[[], float] = time.perf_counter,
        resume: dict[str, Any] | None = None,
    ):
        self._controls, self._stop, self._steer, self._slack, self._clock = (
            Controls.of(known),
            stop,
            steer,
            slack,
            clock,
        )
        self._lock = threading.Lock()
        self._microphone, self._speech = Microphone(), Speech()
        self._camera: Camera | None = None
        """None: the model has no use for one."""
        self._events: list[tuple[str | None, dict[str, Any], float | None]] = []
        """That no sampled chunk shows: id, event, and when it came."""
        self._taken = 0
        """How many of these the chunk shows first that is being sampled."""
        self._anew = False
        """Whether what the microphone heard until now was heard by nobody."""
        self._over = False
        self._told, self._waited_s = (0, 0), 0.0
        self._numbers = 0
        self.sound, self.actions = SessionSound(self), SessionActions(self._controls)
        self.frames: SessionFrames | None = None
        self.picture: bytes | None = None
        self._greeted = threading.Event()
        self._wire = Wire(connect("source.session", address))
        self._resume = resume
        self._thread = threading.Thread(target=self._listen, name="session-source", daemon=True)
        self._thread.start()
        self._greeted.wait(HELLO_S)
        if self.picture is None:
            self.close()
            value = f"source.session={address.rpartition('/')[0]}"  # without the token
            raise UserError(value, "says no hello, as a gateway does", "use one version of everframe on both sides")

    # -- what the stream asks -----------------------------------------------------------------------------------------

    def film(self, fps: int, fit: Fit) -> SessionFrames:
        """Have it see, at `fps` frames a second; returns the source of what it sees."""
        with self._lock:
            self._camera = Camera(fps)
        self.frames = SessionFrames(self, fit)
        return self.frames

    def begin(self, waited_s: float = 0.0) -> None:
        """A chunk is sampled now: all that has come so far shows in it.

        Args:
            waited_s: by how much chunks were put off so far, in all.
        """
        before, self._waited_s = self._waited_s, waited_s
        with self._lock:
            events, self._taken = list(self._events), len(self._events)
            if self._anew:
                self._microphone.drop()
                if self._camera:
                    self._camera.drop()
                self._anew = False
            self._microphone.begin(round((waited_s - before) * RATE))
            if self._camera:
                self._camera.begin(waited_s - before)
        self.actions.begin([(self._pressed(event), at) for _, event, at in events if event["type"] == "action"])
        for _, event, at in events:
            if event["type"] == "prompt":
                self._numbers += 1
                self._steer(event["prompt"], self._clock() if at is None else at, self._numbers)

    @property
    def shown(self) -> list[str]:
        """Ids of what the chunk that is being sampled shows first."""
        with self._lock:
            return [id for id, _, _ in self._events[: self._taken] if id is not None]

    def sampled(self, chunk: int, at: list[float] | None = None) -> None:
        """Chunk `chunk` was. `at`: where the world's camera is in its last frame; None: it has none."""
        shown = self.shown
        with self._lock:
            del self._events[: self._taken]
            self._taken = 0
            self._microphone.end()
            if self._camera:
                self._camera.end()
            silent, late, held = self._microphone.silent, self._microphone.late, self._speech.held
        before, self._told = self._told, (silent, late)
        self._tell(
            "sampled",
            chunk=chunk,
            events=shown,
            held_s=held / RATE,
            silence_s=(silent - before[0]) / RATE,
            late_s=(late - before[1]) / RATE,
            frame=self.frames.new if self.frames else None,
            at=at,
        )

    def read(self, samples: int) -> np.ndarray:
        """Speech while there is some, else what the microphone has heard, else silence; float32 [samples]."""
        with self._lock:
            spoken = self._speech.read(samples)
            heard = self._microphone.read(samples)
        return heard if not len(spoken) else np.concatenate([spoken, np.zeros(samples - len(spoken), np.float32)])

    def look(self, count: int) -> list[Shot | None]:
        """What each of the next `count` video frames is the first to show, as `Camera.read` says."""
        with self._lock:
            return self._camera.read(count)

    # -- from one generation of a run to the next ---------------------------------------------------------------------

    def wire(
        self,
        stop: threading.Event,
        steer: Callable[[str, float, int], None],
        slack: Callable[[float, float], None],
    ) -> None:
        """Go on for the stream as its next generation has it. What was said to a chunk that did not come to be sampled
        is said again to the next. What a microphone hears until then, and a camera sees, nobody hears or sees."""
        with self._lock:
            self._stop, self._steer, self._slack = stop, steer, slack
            self._taken, self._anew = 0, True
            over = self._over
        if over:
            stop.set()

    def leave(self) -> None:
        """Another process goes on: say nothing of an end."""
        self._wire.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def close(self) -> None:
        """Listen no more."""
        self._tell("end")
        if threading.current_thread() is not self._thread:
            self._thread.join(LAST_S)
        self._wire.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- what the gateway says ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        message = self._wire.receive()
        if message is not None and message[0].get("kind") == "hello":
            if self._resume is not None:
                self._tell("resume", **self._resume)
                self._resume = None
            self.picture = message[1]
            self._greeted.set()
            self._converse()
        self._greeted.set()
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._over, stop = True, self._stop
        stop.set()

    def _converse(self) -> None:
        while (message := self._wire.receive()) is not None:
            head, body = message
            try:
                if head["kind"] == "end":
                    break
                self._take(head, body)
            except (KeyError, TypeError, ValueError, UserError) as error:
                log.warning("source.session: a message was skipped: %s", error)

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        kind = head["kind"]
        if kind == "slack":
            self._slack(float(head["seconds"]), float(head["late_s"]))
            return
        with self._lock:
            if kind == "sound":
                self._microphone.give(int(head["at"]), _samples(body))
            elif kind == "frame" and self._camera:
                self._camera.give(Shot(float(head["at"]), body, self._clock()))
            elif kind == "speech":
                self._speech.give(_samples(body))
            elif kind == "event":
                event = head["event"]
                if event["type"] == "action":
                    self._pressed(event)
                elif event["type"] == "interrupt":
                    self._speech.clear()
                new = head["id"] is not None
                self._events.append((str(head["id"]) if new else None, event, self._clock() if new else None))

    def _pressed(self, event: dict[str, Any]) -> Row:
        return self._controls.parse(event, "event")

    def _tell(self, kind: str, **head: Any) -> None:
        try:
            self._wire.send(kind, **head)
        except OSError:
            self._end()


def _samples(body: bytes) -> np.ndarray:
    return np.frombuffer(body, "<i2").astype(np.float32) / 32768 if body else NOTHING
