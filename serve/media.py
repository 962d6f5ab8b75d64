"""What goes from a session's stages to its viewers: coded pictures and sound, and what is known of each chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from serve.camera import Sight

VIDEO_RATE, SOUND_RATE = 90_000, 48_000
"""Ticks per second of a packet's time, by kind."""
PACKET_SAMPLES = 960
"""Of an Opus packet: 20 ms."""


class Packet(NamedTuple):
    """One coded picture, or 20 ms of sound.

    Attributes:
        kind: `video` or `sound`.
        codec: `h264` (Annex B), `vp8`, `opus`.
        data: as the encoder made it.
        pts: since the session's start, in ticks of its kind.
        key: whether a decoder can begin with it.
        chunk: that it belongs to.
        thin: whether it is of the encoding for thin lines.
    """

    kind: str
    codec: str
    data: bytes
    pts: int
    key: bool
    chunk: int
    thin: bool = False


class Shown(NamedTuple):
    """A chunk whose first frame leaves now.

    Attributes:
        chunk, frames: which, and how many frames it has.
        first_frame: number of its first frame in the session.
        pts: of that frame, in ticks of VIDEO_RATE.
        events: ids of what is first shown in it.
        latency_s: since the oldest of them was accepted; None: it shows nothing new.
        late_s: by how much it was late for the session's clock; 0: it was not.
        camera: what is new of a camera in it; None: nothing is.
        at: where the world's camera is in its last frame, [x, y, z, yaw, pitch] (`stages.views.where`); None: it has
            none.
    """

    chunk: int
    frames: int
    first_frame: int
    pts: int
    events: tuple[str, ...] = ()
    latency_s: float | None = None
    late_s: float = 0.0
    camera: Sight | None = None
    at: list[float] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What viewers are told of it, but for where it is in their media."""
        known = {"chunk": self.chunk, "frames": self.frames, "events": list(self.events)}
        known |= {"latency_s": self.latency_s, "late_s": self.late_s}
        known |= {"camera": self.camera._asdict()} if self.camera else {}
        return known | ({"at": self.at} if self.at is not None else {})


class Viewer(ABC):
    """Who sees and hears a session. All is called in the gateway's loop, and none of it waits.

    Attributes:
        id: for logs.
        codec: of the pictures that it takes.
    """

    id: str
    codec: str = "h264"

    @abstractmethod
    def packet(self, packet: Packet) -> None:
        """A picture or sound is due."""

    def shown(self, shown: Shown) -> None:  # noqa: B027  not every viewer shows figures
        """A chunk begins with the packets that follow."""

    def notice(self, message: dict[str, Any]) -> None:  # noqa: B027  nor talks
        """A message of the protocol, such as `{"type": "session.notice", ...}`."""

    @abstractmethod
    def close(self, reason: str) -> None:
        """The session has ended; or, where it has not, this viewer is let go of."""
