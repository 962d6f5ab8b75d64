"""A session's packets as fragmented mp4, for what plays files: Media Source Extensions, recordings."""

from __future__ import annotations

import re
from collections import deque

from serve.boxes import Sample, fragment, init
from serve.media import PACKET_SAMPLES, SOUND_RATE, VIDEO_RATE, Packet

START_CODE = re.compile(rb"\x00*\x00\x00\x01")
SPS, PPS, DELIMITER = 7, 8, 9
"""Kinds of NAL units that have no place in a sample (14496-15, 5.3.2)."""
SPAN = VIDEO_RATE // 10
"""Of a fragment, in ticks of its pictures."""
EARLY = SOUND_RATE // PACKET_SAMPLES
"""Packets of sound that are kept until the first picture is there: one second."""
PAUSE = 4
"""A picture that comes later than this many times the usual is no sign of a lower rate."""


class Fragments:
    """Packets in, an init segment and fragments out; nothing is decoded or encoded.

    The first picture is a key frame, and its time is 0: what is recorded from a session that has been running for hours
    begins at once. Afterwards times are the session's, whatever is left out: who was skipped ahead finds a gap, not a
    shift, and sound stays with its picture.

    Args:
        width, height: of the picture in pixels.
        fps: frames per second.
        sound: whether there is a sound track; sound without one is left out.

    Attributes:
        mime: of the whole, for `MediaSource.isTypeSupported`; None before the init segment.
        origin: time of the first picture in ticks of VIDEO_RATE since the session's start; None before it.
        begun: init segments so far: another one follows where another encoder took over.
        waiting: whether only a key frame lets it go on.
    """

    def __init__(self, width: int, height: int, fps: float, sound: bool):
        self._size, self._loud = (width, height), sound
        self._usual = round(VIDEO_RATE / fps)
        self._step = self._usual
        self._before: int | None = None
        self._sets: tuple[bytes, bytes] | None = None
        self._video: list[Packet] = []
        self._sound: list[Packet] = []
        self._early: deque[Packet] = deque(maxlen=EARLY)
        self._last = {"video": -1, "sound": -1}
        self._number = 0
        self.mime: str | None = None
        self.begun = 0
        self.origin: int | None = None
        self.waiting = True

    def add(self, packet: Packet) -> bytes | None:
        """Take a packet of H.264 (Annex B; no frame is shown before one that was decoded earlier) or Opus.

        Returns:
            The init segment, with the first key frame that carries its parameter sets; later whole fragments: when a
            tenth of a second is there, or the picture is the first of a chunk. None: nothing is complete. Packets of
            other codecs and times that have passed are left out.
        """
        if packet.codec not in ("h264", "opus") or packet.pts <= self._last[packet.kind]:
            return None
        self._last[packet.kind] = packet.pts
        return self._add_picture(packet) if packet.kind == "video" else self._add_sound(packet)

    def flush(self) -> bytes | None:
        """What is there, as a fragment; None: nothing is."""
        if not self._video and not self._sound:
            return None
        video = _samples(self._video, self.origin, self._step)
        shift = self.origin * SOUND_RATE // VIDEO_RATE
        sound = _samples(self._sound, shift, PACKET_SAMPLES)
        self._video, self._sound = [], []
        self._number += 1
        return fragment(self._number, video, sound)

    def skip(self) -> None:
        """Leave out what is not yet a fragment, and everything until the next key frame."""
        self._video, self._sound = [], []
        self._early.clear()
        self.waiting = True

    def _add_picture(self, packet: Packet) -> bytes | None:
        units = [unit for unit in START_CODE.split(packet.data) if unit]
        sets = _sets(units) if packet.key else None
        if self.waiting and not (packet.key and (sets or self._sets)):
            return None
        made = b""
        changed = sets not in (None, self._sets)
        if changed or (self._video and packet.chunk != self._video[-1].chunk):
            made = self.flush() or b""
        if changed:  # the first ones, or those of another encoder, which want a decoder of their own
            made += self._init(sets)
        if self.waiting:
            self._go_on(packet)
        self._keep(packet, units)
        if packet.pts + self._step - self._video[0].pts >= SPAN:
            made += self.flush()
        return made or None

    def _go_on(self, packet: Packet) -> None:
        """From this key frame on, with the sound that came before it but belongs beside it."""
        self.waiting, self._before = False, None
        if self.origin is None:
            self.origin = packet.pts
        begin = -(-packet.pts * SOUND_RATE // VIDEO_RATE)
        self._sound = [early for early in self._early if early.pts >= begin]
        self._early.clear()

    def _keep(self, packet: Packet, units: list[bytes]) -> None:
        """Keep a picture; it will stand for as long as the one before did, as its successor is not there yet."""
        step = self._usual if self._before is None else packet.pts - self._before
        self._step = step if step <= PAUSE * self._usual else self._usual
        self._before = packet.pts
        kept = [unit for unit in units if unit[0] & 31 not in (SPS, PPS, DELIMITER)]
        self._video.append(packet._replace(data=b"".join(len(unit).to_bytes(4, "big") + unit for unit in kept)))

    def _add_sound(self, packet: Packet) -> bytes | None:
        if not self._loud:
            return None
        if self.waiting:
            self._early.append(packet)
            return None
        self._sound.append(packet)
        # Sound goes on where the picture stands still.
        held = packet.pts + PACKET_SAMPLES - self._sound[0].pts
        return self.flush() if held * VIDEO_RATE >= 2 * SPAN * SOUND_RATE else None

    def _init(self, sets: tuple[bytes, bytes]) -> bytes:
        self._sets = sets
        self.begun += 1
        profile = sets[0][1:4].hex().upper()
        self.mime = f'video/mp4; codecs="avc1.{profile}{",opus" if self._loud else ""}"'
        return init(*self._size, *sets, self._loud)


def _sets(units: list[bytes]) -> tuple[bytes, bytes] | None:
    """The parameter sets among NAL units: the first of either kind; None: one is missing."""
    found = {unit[0] & 31: unit for unit in reversed(units) if len(unit) > 3}
    return (found[SPS], found[PPS]) if SPS in found and PPS in found else None


def _samples(packets: list[Packet], origin: int, step: int) -> list[Sample]:
    """Packets with times from `origin` on, each as long as until the next; the last one `step` ticks."""
    ends = [packet.pts for packet in packets[1:]] + [packets[-1].pts + step] if packets else []
    return [
        Sample(packet.data, packet.pts - origin, end - packet.pts, packet.key)
        for packet, end in zip(packets, ends, strict=True)
    ]
