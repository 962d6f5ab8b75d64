"""The clock of a session: when each picture and each packet of sound leaves, and what is done to them on the way.

Time 0 is when the first chunk is there, its pictures and its sound, and a margin later. Picture i is due at i / fps,
packet j at j * 20 ms, both on this one clock, so that errors do not add up and lips stay with words. A chunk that comes
late moves the clock for both; nothing is skipped to catch up, and nothing is held that is due.

Where another player had begun (its process is gone), this one begins where that one came to, in the middle of a chunk
if need be: with a key frame, on the same line of times, so that those who watch see nothing twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np

from stages.sinks.coded import PACKET, PICTURE_TICKS, SOUND_TICKS, PictureCoder, SoundCoder, planar

SOUND = 16_000
"""Samples per second of the sound that is put."""
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


class Begin(NamedTuple):
    """Where a player begins.

    Attributes:
        frames: pictures before the first chunk that will come.
        told: the last chunk whose beginning viewers were told of; -1: of none.
        picture: the number of the picture that leaves next.
        sound: samples of 48 kHz that have left; 0: nobody has heard any.
        muted: whether the sound is cut off.
        loud_from: the first chunk to be heard again then; None: it is not known yet.
    """

    frames: int = 0
    told: int = -1
    picture: int = 0
    sound: int = 0
    muted: bool = False
    loud_from: int | None = None

    @classmethod
    def of(cls, hello: Mapping[str, Any], frames: int) -> Begin:
        """What a gateway says of what its viewers have seen.

        Raises:
            KeyError, TypeError, ValueError: it says something else.
        """
        if not hello.get("again"):
            return cls()
        loud = hello["loud_from"]
        where = (int(hello[name]) for name in ("chunk", "frame", "sound_at"))
        return cls(frames, *where, bool(hello["muted"]), None if loud is None else int(loud))


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
        begin: where it begins; None: at the beginning.
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
        begin: Begin | None = None,
    ):
        self.fps, self._send, self._margin_s = fps, send, margin_s
        self._size, self._card = (height, width, fps), card
        self._changed, self._holds = threading.Condition(), True
        self._chunks: deque[tuple[Made, float]] = deque()
        """Chunks not played out yet, and when each had come."""
        self._zero: float | None = None
        """When time 0 was, by the clock of who calls."""
        begin = begin or Begin()
        self._frame, self._began = max(begin.picture, begin.frames), begin.frames
        """Pictures that have left; and those before the chunk that leaves now."""
        self._put = begin.frames
        """Pictures that have come."""
        self._told = begin.told
        self._gone = self._leaving = -1
        """The last chunk that has left with all its pictures; and the one whose last picture leaves just now."""
        self._sounds: deque[tuple[int, int]] = deque()
        """(first sample at 48 kHz, chunk) of sound that has not left."""
        self._heard = int(begin.frames * SOUND / fps) * (SOUND_TICKS // SOUND)
        """Samples at 48 kHz that have come."""
        heard = max(begin.sound, self._heard // PACKET * PACKET)
        self._sound = SoundCoder(SOUND, self._heard, heard) if sound else None
        self._wanted: dict[Encoding, PictureCoder] = {}
        self._keys: set[Encoding] = set()
        """Of which a key frame is asked for."""
        self._rates: dict[bool, tuple[int | None, int]] = {False: (None, 1), True: (None, 1)}
        """Bits per second, and of how many pictures one is coded, by whether it is for thin lines."""
        self._fading = self._closed = False
        self._muted = begin.muted
        self._sending = False
        """Whether messages were taken that are not sent yet."""
        self._loud_from = begin.loud_from
        """Of sound that is muted, the first chunk to be heard again; None: it is not known yet."""

    # -- who makes chunks ---------------------------------------------------------------------------------------------

    def hold(self, holds: bool) -> None:
        """Whether `put` waits for room; one that waits just now goes on where it is not to."""
        with self._changed:
            self._holds = holds
            self._changed.notify_all()

    def put(self, made: Made, clock: Callable[[], float]) -> None:
        """A chunk is there. Waits while as many are held as may be."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < AHEAD or self._closed or not self._holds)
            first, self._put = self._put, self._put + len(made.frames)
            if self._sound is not None and made.sound is not None:
                self._sounds.append((self._heard, made.number))
                self._sound.give(made.sound)
                self._heard += len(made.sound) * (SOUND_TICKS // SOUND)
            if self._put <= self._frame and not self._chunks:  # all of it was seen
                self._began, self._gone, self._leaving = self._put, made.number, made.number
                return
            # Where some of it was seen, the rest is due at once.
            due, now = max(first, self._frame) / self.fps if not self._chunks else first / self.fps, clock()
            if self._zero is None:
                self._zero = now + self._margin_s - due
            slack = self._zero + due - now
            if slack < 0:
                self._zero -= slack
            self._chunks.append((made, slack))
            self._changed.notify_all()

    @property
    def seen(self) -> int:
        """Number of the first chunk that has not left, or before which some sound has not."""
        with self._changed:
            gone = self._gone + 1
            if self._sound is None:
                return gone
            # A packet may have sound of two chunks, and leaves with the later one.
            return min([gone, *(chunk - 1 for at, chunk in self._sounds if at > self._sound.next)])

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
                self._sending, self._gone = False, self._leaving
                self._changed.notify_all()

    def _picture_due(self) -> float:
        return self._zero + self._frame / self.fps if self._chunks else inf

    def _packet_due(self) -> float:
        if self._zero is None or self._sound is None or not self._sound.ready:
            return inf
        return self._zero + self._sound.next / SOUND_TICKS

    def _play_picture(self) -> list[tuple[str, bytes, dict[str, Any]]]:
        made, slack = self._chunks[0]
        index, pts = self._frame - self._began, self._ticks(self._frame)
        messages = []
        if made.number > self._told:
            self._told = made.number
            head = {"chunk": made.number, "frames": len(made.frames), "first_frame": self._began}
            messages.append(("chunk", b"", head | {"pts": self._ticks(self._began), "slack_s": slack}))
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
            self._began, self._leaving = self._frame, made.number
            self._changed.notify_all()
        return messages

    def _ticks(self, frame: int) -> int:
        return round(frame * PICTURE_TICKS / self.fps)

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
