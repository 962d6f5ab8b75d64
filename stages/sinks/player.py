"""The clock of a session: when each picture and each packet of sound leaves, and what is done to them on the way.

Time 0 is when the first chunk is there, its pictures and its sound, and a margin later. Picture i is due at i / fps,
packet j at j * 20 ms, both on this one clock, so that errors do not add up and lips stay with words. A chunk that comes
late moves the clock for both; nothing is skipped to catch up, and nothing is held that is due.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, NamedTuple

import numpy as np

from stages.sinks.coded import PACKET, PICTURE_TICKS, SOUND_TICKS, PictureCoder, SoundCoder, planar

FADE = 480
"""Samples of 48 kHz in which sound that is cut off fades: 10 ms."""
AHEAD = 2
"""Chunks that are held at most."""

Encoding = tuple[str, bool]
"""A codec, and whether it is for thin lines."""


class Made(NamedTuple):
    """A chunk as it was put out: frames uint8 [n, H, W, 3], and their sound, float32 [m] at 16 kHz, or None."""

    number: int
    frames: np.ndarray
    sound: np.ndarray | None


class Player:
    """Plays one session's chunks. `put` is called by who makes them, `step` by who sends them, the rest by who hears
    from viewers.

    Args:
        fps: pictures per second.
        height, width: of pictures, in pixels.
        sound: whether there is any.
        send: takes (kind, body, head) of every message.
        margin_s: how long before it is due the first chunk is to be there: what its way may vary by.
        card: whether a card's encoder may be used.
    """

    def __init__(
        self,
        fps: float,
        height: int,
        width: int,
        sound: bool,
        send: Callable[..., None],
        margin_s: float = 0.0,
        card: bool = False,
    ):
        self.fps, self._send, self._margin_s = fps, send, margin_s
        self._size, self._card = (height, width, fps), card
        self._changed = threading.Condition()
        self._chunks: deque[tuple[Made, float]] = deque()
        """Chunks not played out yet, and when each had come."""
        self._zero: float | None = None
        """When time 0 was, by the clock of who calls."""
        self._frame = self._began = 0
        """Pictures that have left; and those before the chunk that leaves now."""
        self._put = 0
        """Pictures that have come."""
        self._sound = SoundCoder() if sound else None
        self._sounds: deque[tuple[int, int]] = deque()
        """(first sample at 48 kHz, chunk) of sound that has not left."""
        self._heard = 0
        self._wanted: dict[Encoding, PictureCoder] = {}
        self._keys: set[Encoding] = set()
        """Of which a key frame is asked for."""
        self._rates: dict[bool, tuple[int | None, int]] = {False: (None, 1), True: (None, 1)}
        """Bits per second, and of how many pictures one is coded, by whether it is for thin lines."""
        self._muted = self._fading = self._closed = False
        self._sending = False
        """Whether messages were taken that are not sent yet."""
        self._loud_from: int | None = None
        """Of sound that is muted, the first chunk to be heard again; None: it is not known yet."""

    # -- who makes chunks ---------------------------------------------------------------------------------------------

    def put(self, made: Made, clock: Callable[[], float]) -> None:
        """A chunk is there. Waits while as many are held as may be."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < AHEAD or self._closed)
            now = clock()
            if self._zero is None:
                self._zero = now + self._margin_s
            slack = self._zero + self._put / self.fps - now
            if slack < 0:
                self._zero -= slack
            self._put += len(made.frames)
            if self._sound is not None and made.sound is not None:
                self._sounds.append((self._heard, made.number))
                self._sound.give(made.sound)
                self._heard += len(made.sound) * (SOUND_TICKS // 16_000)
            self._chunks.append((made, slack))
            self._changed.notify_all()

    def finish(self, patience_s: float | None = None) -> bool:
        """No more chunks come: wait until all that is there was sent, and return whether it was.

        Args:
            patience_s: how long nothing may be sent; None: for ever.
        """
        with self._changed:
            if self._sound is not None and not self._closed:
                self._sound.end()
                self._changed.notify_all()
            while not self._closed and (self._chunks or self._sending or self._packet_due() < inf):
                if not self._changed.wait(patience_s):
                    return False
            return not self._closed

    def close(self) -> None:
        """Play no more; whoever waits goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def release(self) -> None:
        """Let go of pictures and encoders, once it was closed and nobody plays any more: a cycle that holds it is
        collected whenever that may be, and an encoder has threads and memory of its own."""
        with self._changed:
            self._chunks.clear()
            self._wanted.clear()
            self._sound = None

    # -- who hears from viewers ---------------------------------------------------------------------------------------

    def want(self, codecs: Iterable[str], thin: Iterable[str] = ()) -> None:
        """Pictures are wanted in these codecs, and no others; and, for thin lines, a second time in those. A new one
        begins with a key frame, and what is for thin lines comes last."""
        wanted = [(codec, False) for codec in codecs] + [(codec, True) for codec in thin]
        with self._changed:
            new = {one: PictureCoder(one[0], *self._size, card=self._card) for one in wanted if one not in self._wanted}
            self._wanted = {one: self._wanted.get(one) or new[one] for one in wanted}
            self._keys &= set(wanted)
            for (_, is_thin), coder in self._wanted.items():
                coder.rate(self._rates[is_thin][0])

    def key(self) -> None:
        """The next picture is to be one with which a decoder can begin."""
        with self._changed:
            self._keys |= set(self._wanted)

    def rate(self, bits_per_second: int | None, every: int, thin: bool = False) -> None:
        """Pictures may take so much (None: what they are worth), and only every so many are to be coded."""
        with self._changed:
            self._rates[thin] = bits_per_second, max(1, every)
            for (_, is_thin), coder in self._wanted.items():
                if is_thin == thin:
                    coder.rate(bits_per_second)

    def mute(self) -> float:
        """Cut off the sound; returns the seconds that were heard."""
        with self._changed:
            self._fading, self._muted, self._loud_from = not self._muted, True, None
            return self._sound.next / SOUND_TICKS if self._sound else self._frame / self.fps

    def unmute(self, chunk: int) -> None:
        """Sound is heard again from a chunk on."""
        with self._changed:
            self._loud_from = chunk

    # -- who sends ----------------------------------------------------------------------------------------------------

    def wait(self, clock: Callable[[], float]) -> bool:
        """Wait until something is due, or may be; False: the player was closed."""
        with self._changed:
            due = min(self._picture_due(), self._packet_due())
            if not self._closed:
                self._changed.wait(None if due == inf else max(0.0, due - clock()))
            return not self._closed

    def step(self, now: float) -> None:
        """Send what is due."""
        while True:
            with self._changed:
                picture, packet = self._picture_due(), self._packet_due()
                if min(picture, packet) > now:
                    return
                # What is heard with a picture goes before it.
                messages = self._play_packet() if packet <= picture else self._play_picture()
                self._sending = True
            for kind, body, head in messages:
                self._send(kind, body, **head)
            with self._changed:
                self._sending = False
                self._changed.notify_all()

    def _picture_due(self) -> float:
        return self._zero + self._frame / self.fps if self._chunks else inf

    def _packet_due(self) -> float:
        if self._sound is None or not self._sound.ready:
            return inf
        return self._zero + self._sound.next / SOUND_TICKS

    def _play_picture(self) -> list[tuple[str, bytes, dict[str, Any]]]:
        made, slack = self._chunks[0]
        index, pts = self._frame - self._began, round(self._frame * PICTURE_TICKS / self.fps)
        messages = []
        if index == 0:
            head = {"chunk": made.number, "frames": len(made.frames), "first_frame": self._frame}
            messages.append(("chunk", b"", head | {"pts": pts, "slack_s": slack}))
        due = [one for one in self._wanted if one in self._keys or not self._frame % self._rates[one[1]][1]]
        picture = planar(made.frames[index]) if due else None
        for one in due:
            body, key = self._wanted[one].encode(picture, pts, one in self._keys)
            self._keys.discard(one)
            head = {"codec": one[0], "key": key, "pts": pts, "chunk": made.number, "thin": one[1]}
            messages.append(("video", body, head))
        self._frame += 1
        if index + 1 == len(made.frames):
            self._chunks.popleft()
            self._began = self._frame
            self._changed.notify_all()
        return messages

    def _play_packet(self) -> list[tuple[str, bytes, dict[str, Any]]]:
        at = self._sound.next
        while len(self._sounds) > 1 and self._sounds[1][0] <= at:
            self._sounds.popleft()
        chunk = self._sounds[0][1]
        if self._muted and self._loud_from is not None and chunk >= self._loud_from:
            self._muted = False
        body = self._sound.packet(self._gain())
        return [("sound", body, {"pts": at, "chunk": chunk})] if self._wanted else []

    def _gain(self) -> np.ndarray | None:
        if not self._muted:
            return None
        gain = np.zeros(PACKET, np.float32)
        if self._fading:
            gain[:FADE], self._fading = np.linspace(1, 0, FADE, dtype=np.float32), False
        return gain
