"""What a viewer is sent: coded packets, handed to the WebRTC library the moment they are due."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from serve.media import SOUND_RATE, VIDEO_RATE, Packet

RATES = {"video": VIDEO_RATE, "audio": SOUND_RATE}
LONGEST_S = 1.0
"""Of media that may wait to be sent; they do not unless the process is held up."""


class CodedTrack(MediaStreamTrack):
    """Packets as they come; the library puts them into RTP without coding them again.

    Args:
        kind: `video` or `audio`.
        emptied: called when packets had to be thrown away.

    Attributes:
        dropped: packets that were thrown away.
    """

    def __init__(self, kind: str, emptied: Callable[[], None]):
        super().__init__()
        self.kind = kind
        self._emptied = emptied
        self._held: deque[Packet] = deque()
        self._come = asyncio.Event()
        self._broken_at: int | None = None
        """When, in ticks, a key frame was found to be needed: pictures until then cannot be decoded."""
        self._began = kind == "audio"
        self.dropped = 0

    def put(self, packet: Packet) -> None:
        """A packet is due. The first picture that goes out is one that a decoder can begin with."""
        if self._held and packet.pts - self._held[0].pts > LONGEST_S * RATES[self.kind]:
            self._throw_away(packet.pts)
        if self.kind == "video" and not packet.key and not self._goes_on(packet.pts):
            self.dropped += 1
            return
        self._began, self._broken_at = True, None
        self._held.append(packet)
        self._come.set()

    def _throw_away(self, pts: int) -> None:
        self.dropped += len(self._held)
        self._held.clear()
        self._broken_at = pts
        self._emptied()

    def _goes_on(self, pts: int) -> bool:
        """Whether a picture can be decoded that needs those before it; asks again where no key frame comes."""
        if self._began and self._broken_at is None:
            return True
        if self._broken_at is None:
            self._broken_at = pts
        elif pts - self._broken_at > LONGEST_S * VIDEO_RATE:
            self._broken_at = pts
            self._emptied()
        return False

    async def recv(self) -> av.Packet:
        """The next packet, its time stamp as it was given.

        Raises:
            MediaStreamError: the track was stopped.
        """
        while not self._held:
            if self.readyState != "live":
                raise MediaStreamError
            self._come.clear()
            await self._come.wait()
        given = self._held.popleft()
        packet = av.Packet(given.data)
        packet.pts, packet.time_base = given.pts, Fraction(1, RATES[self.kind])
        return packet

    def stop(self) -> None:
        """Hand on nothing more."""
        super().stop()
        self._held.clear()
        self._come.set()
