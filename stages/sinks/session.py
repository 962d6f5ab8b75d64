"""Coded pictures and sound to a session's viewers, through its gateway (`sink.session=tcp://HOST:PORT/TOKEN`).

The sink plays its chunks itself, each picture when it is due (`stages.sinks.player`), and sends, on its connection,

    start {fps, height, width, sound}
    chunk {chunk, frames, first_frame, pts, slack_s}   before a chunk's first picture; slack_s: it was there so early
    video {codec, key, pts, chunk, thin}               a coded picture, in each codec that is wanted; for thin lines
    sound {pts, chunk}                                 an Opus packet
    position {seconds}                                 heard before the sound was cut off
    failed {message}                                   nothing more can be coded
    end {}                                             all of the stream was sent

and hears `hello {margin_s}` first, to which a gateway whose viewers have seen a part of the stream adds `again: true`
and where they are, so that nothing comes to them twice: `chunk`, the last that was told, -1: none; `frame`, the number
of the picture that is next; `sound_at`, the samples of 48 kHz that were heard; `muted`, and from which chunk on no
more, `loud_from`.

Then it hears `want {codecs, thin}`, `key {}`, `rate {bits_per_second, every, thin}`, `mute {}` and `unmute {chunk}`.
Thin are codecs in which pictures are coded a second time, for thin lines; and a rate that is of those.

After `end` the gateway hangs up, so a stream ends when all of it has been read. A gateway that is gone hears nothing
more: its source ends the stream. A sink that goes without `end` is waited for, if another may come.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np

import devices
from conf.errors import UserError
from stages.link import LAST_S, Wire, connect
from stages.sinks.player import Begin, Made, Player

log = logging.getLogger(__name__)


class SessionSink:
    """The stream's end.

    Args:
        address: of the gateway.
        fps: frames per second.
        height, width: of the pictures, in pixels.
        sound: whether there is any.
        first: number of the first chunk to come.
        frames: of the stream before it.

    Raises:
        UserError: nobody answers at the address, or the session is over.
    """

    def __init__(self, address: str, fps: float, height: int, width: int, sound: bool, first: int = 0, frames: int = 0):
        self._next, self._wire = first, Wire(connect("sink.session", address))
        hello = self._wire.receive()
        if hello is None:
            self._wire.close()
            rule = "the gateway has ended the session"
            raise UserError(f"sink.session={address.rpartition('/')[0]}", rule, "open another one")
        margin_s, begin = float(hello[0]["margin_s"]), Begin.of(hello[0], frames)
        self._player = Player(fps, height, width, sound, self._send, margin_s, devices.count() > 0, begin)
        self._whole = False
        """Whether all of the stream was sent."""
        self._send("start", fps=fps, height=height, width=width, sound=sound)
        self._ears = threading.Thread(target=self._listen, name="session-viewers", daemon=True)
        self._hands = threading.Thread(target=self._play, name="session-player", daemon=True)
        self._ears.start()
        self._hands.start()

    def write(self, frames: np.ndarray, sound: np.ndarray | None) -> None:
        """Have a chunk played: uint8 [n, H, W, 3], and float32 [m] at 16 kHz or None."""
        made = Made(self._next, np.array(frames, np.uint8), None if sound is None else np.array(sound, np.float32))
        self._next += 1
        self._player.put(made, time.perf_counter)

    def release(self) -> None:
        """From any thread: wait for viewers no more until `hold`."""
        self._player.hold(False)

    def hold(self) -> None:
        """Wait for them again."""
        self._player.hold(True)

    @property
    def seen(self) -> int:
        """Number of the first chunk that has not left with all of it."""
        return self._player.seen

    def leave(self) -> None:
        """Play no more: another goes on from where viewers are now."""
        self._player.close()
        self._hands.join()  # what it sends just now comes whole
        self._let_go()

    def close(self) -> None:
        """Play what is left, then end."""
        self._whole = self._player.finish(LAST_S)
        self._player.close()
        self._hands.join(LAST_S)
        self._ears.join(LAST_S)
        self._let_go()

    def _let_go(self) -> None:
        self._wire.close()
        self._hands.join()
        self._ears.join()
        self._player.release()

    def _send(self, kind: str, body: bytes = b"", **head: Any) -> None:
        try:
            self._wire.send(kind, body, **head)
        except OSError:
            self._player.close()

    def _play(self) -> None:
        try:
            while self._player.wait(time.perf_counter):
                self._player.step(time.perf_counter())
            if self._whole:
                self._send("end")
        except Exception as error:
            log.exception("sink.session: nothing more can be played")
            self._send("failed", message=str(error))
            self._player.close()

    def _listen(self) -> None:
        acts = {
            "want": lambda head: self._player.want(head["codecs"], head.get("thin", ())),
            "key": lambda head: self._player.key(),
            "rate": lambda h: self._player.rate(h["bits_per_second"], int(h["every"]), h.get("thin", False)),
            "mute": lambda head: self._send("position", seconds=self._player.mute()),
            "unmute": lambda head: self._player.unmute(int(head["chunk"])),
        }
        while (message := self._wire.receive()) is not None:
            act = acts.get(message[0]["kind"])
            if act is not None:
                act(message[0])
        self._player.close()
