"""A visitor's microphone: from RTP packets to 16 kHz samples, each at its place on the microphone's own time line.

The library's own buffer holds four packets at all times, and sixteen for good once one was lost. Nothing is held here
but what waits for a packet before it. What is lost leaves a gap, which is never closed up: sound would come ever later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import av
from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamError

RTP_RATE, RATE = 48_000, 16_000
"""Ticks per second of Opus' RTP time stamps (RFC 7587 section 4.1), and samples per second of what is handed on."""
PATIENCE = 2
"""Packets that come after a missing one before it is given up: Opus over WebRTC is not sent again."""
FARTHEST = 64
"""Sequence numbers that a packet may be ahead before what is missing is given up at once."""
AHEAD_S = 10.0
"""By how much time stamps may run ahead of the clock: more is a sender whose time line has jumped."""
WAITING = 100
"""Packets that may wait to be decoded; more are dropped: two seconds."""


class Coded(NamedTuple):
    """A coded packet in its turn, and where its first sample is, in ticks of RTP_RATE from the first packet's."""

    data: bytes
    position: int


class InOrder:
    """Puts packets in order, as late as needed and no later, and says where on the time line each belongs.

    Args:
        clock: seconds.

    Attributes:
        lost: packets that were given up.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._held: dict[int, tuple[int, bytes]] = {}
        self._next: int | None = None
        self._source: int | None = None
        self._stamp = self._position = 0
        """Of the packet handed on last: its RTP time stamp, and where it was put."""
        self._began_at = 0.0
        self.lost = 0

    def add(self, source: int, sequence: int, stamp: int, data: bytes) -> list[Coded]:
        """What can be handed on, now that a packet is there.

        Args:
            source: SSRC; sequence: 16 bit; stamp: 32 bit, both wrap around (RFC 3550 section 5.1).
        """
        if source != self._source:
            self._begin(source, sequence, stamp)
        ahead = (sequence - self._next) & 0xFFFF
        if ahead >= 0x8000:  # its place has been passed
            return []
        far = ahead >= FARTHEST
        ready = self._rest() if far else []
        self._held.setdefault(sequence, (stamp, data))
        if self._next not in self._held and (far or len(self._held) >= PATIENCE):
            self._skip()
        return ready + self._in_turn()

    def _begin(self, source: int, sequence: int, stamp: int) -> None:
        """A new source, such as another microphone: it goes on where the clock stands."""
        now = self._clock()
        if self._source is None:
            self._began_at = now
        self._position = max(self._position, round((now - self._began_at) * RTP_RATE))
        self._held.clear()
        self._source, self._next, self._stamp = source, sequence, stamp

    def _in_turn(self) -> list[Coded]:
        """Packets that follow the last one handed on."""
        ready = []
        while (found := self._held.pop(self._next, None)) is not None:
            stamp, data = found
            ready.append(Coded(data, self._place(stamp)))
            self._next = (self._next + 1) & 0xFFFF
        return ready

    def _skip(self) -> None:
        """Give up what is missing: go on at the first packet that is there."""
        missing = min((sequence - self._next) & 0xFFFF for sequence in self._held)
        self.lost += missing
        self._next = (self._next + missing) & 0xFFFF

    def _rest(self) -> list[Coded]:
        """All that is there, in order."""
        ready: list[Coded] = []
        while self._held:
            self._skip()
            ready += self._in_turn()
        return ready

    def _place(self, stamp: int) -> int:
        """Where a packet belongs: as far from the last as their time stamps are apart, if that can be."""
        passed = ((stamp - self._stamp + 0x80000000) & 0xFFFFFFFF) - 0x80000000
        clock = round((self._clock() - self._began_at) * RTP_RATE)
        position = self._position + passed
        if passed < 0 or position > clock + AHEAD_S * RTP_RATE:
            position = max(self._position, clock)
        self._stamp, self._position = stamp, position
        return position


class Buffer:
    """Stands in for the library's buffer of a receiver, which asks for `add`, and feeds its decoder itself.

    Args:
        receiver: of a section for sound whose only codec is Opus, before it has received anything.
        order: of its packets.
    """

    def __init__(self, receiver: RTCRtpReceiver, order: InOrder):
        self._receiver, self._order = receiver, order

    def add(self, packet: Any) -> tuple[bool, None]:
        """Take an RTP packet; the library is told that there is nothing to decode, because it takes one at a time."""
        queue = self._receiver._RTCRtpReceiver__decoder_queue
        codec = self._receiver._RTCRtpReceiver__codecs[packet.payload_type]
        for heard in self._order.add(packet.ssrc, packet.sequence_number, packet.timestamp, packet._data):
            if heard.data and queue.qsize() < WAITING:
                queue.put((codec, JitterFrame(heard.data, heard.position)))
        return False, None


class Resampled:
    """48 kHz stereo to 16 kHz mono, a run of unbroken sound at a time.

    Args:
        sound: is given s16 samples and the position of the first, in samples of RATE.
    """

    def __init__(self, sound: Callable[[bytes, int], None]):
        self._sound = sound
        self._resampler: av.AudioResampler | None = None
        self._expected = self._at = 0
        """The position after the last frame, in ticks; and that of the next sample to be handed on."""

    def add(self, frame: av.AudioFrame) -> None:
        """The next decoded frame; its `pts` is its position in ticks of RTP_RATE."""
        position = frame.pts
        if self._resampler is None or position != self._expected:
            self.end()
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            self._at = position * RATE // RTP_RATE
        self._expected = position + frame.samples
        self._hand_on(self._resampler.resample(frame))

    def end(self) -> None:
        """Hand on what the filter still holds: the sound breaks off here."""
        if self._resampler is not None:
            self._hand_on(self._resampler.resample(None))
            self._resampler = None

    def _hand_on(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            pcm = frame.to_ndarray().tobytes()
            if pcm:
                self._sound(pcm, self._at)
            self._at += frame.samples


class Microphone:
    """Listens to a receiver until its track ends or it is closed.

    Args:
        receiver: as Buffer has it.
        sound: as Resampled has it; called in the loop.
        clock: seconds.
    """

    def __init__(self, receiver: RTCRtpReceiver, sound: Callable[[bytes, int], None], clock: Callable[[], float]):
        self.order = InOrder(clock)
        if not hasattr(receiver, "_RTCRtpReceiver__jitter_buffer"):
            raise TypeError("this version of aiortc keeps its buffer elsewhere")
        receiver._RTCRtpReceiver__jitter_buffer = Buffer(receiver, self.order)
        self._track, self._resampled = receiver.track, Resampled(sound)
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                self._resampled.add(await self._track.recv())
        self._resampled.end()

    async def close(self) -> None:
        """Listen no more."""
        self._task.cancel()
        await asyncio.wait([self._task])
