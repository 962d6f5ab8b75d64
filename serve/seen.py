"""How far the viewers of a session are, by what has left for them: where a stage begins that plays on for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.media import PACKET_SAMPLES, VIDEO_RATE, Packet


class Seen:
    """Of one session.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._fps: float | None = None
        self._chunk, self._frame, self._sound_at = -1, 0, 0
        self._zero: float | None = None
        """When time 0 was, by what left last; None: nothing has left."""
        self._another = False
        """Whether another stage plays on, of which nothing has left yet."""
        self._later_s = 0.0
        self._muted, self._loud_from = False, None

    def start(self, fps: float) -> None:
        """A stage plays so many pictures a second."""
        self._fps, self._another = fps, True

    def chunk(self, head: dict[str, Any]) -> None:
        """A chunk begins to leave."""
        self._chunk, self._frame = head["chunk"], max(self._frame, head["first_frame"])
        self._leaves(head["pts"])

    def packet(self, packet: Packet) -> None:
        """A picture or sound has left."""
        if packet.kind == "sound":
            self._sound_at = packet.pts + PACKET_SAMPLES
            return
        if self._fps:
            self._frame = max(self._frame, round(packet.pts * self._fps / VIDEO_RATE) + 1)
        self._leaves(packet.pts)

    def _leaves(self, pts: int) -> None:
        zero = self._clock() - pts / VIDEO_RATE
        if self._another and self._zero is not None:
            self._later_s += max(0.0, zero - self._zero)
        self._zero, self._another = zero, False

    def mute(self) -> None:
        """The sound is cut off."""
        self._muted, self._loud_from = True, None

    def unmute(self, chunk: int) -> None:
        """It is heard again from a chunk on."""
        self._loud_from = chunk

    def later(self) -> float:
        """Seconds by which all is shown later since one stage goes on for another, told once."""
        later_s, self._later_s = self._later_s, 0.0
        return later_s

    def told(self) -> dict[str, Any]:
        """As a stage is told that plays on (`stages.sinks.session`)."""
        where = {"chunk": self._chunk, "frame": self._frame, "sound_at": self._sound_at}
        return {"again": True, **where, "muted": self._muted, "loud_from": self._loud_from}
