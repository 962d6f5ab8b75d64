"""Figures of one session, as people and programs are shown them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from serve.media import VIDEO_RATE, Packet, Shown

RECENT, RATED_S = 8, 2.0
"""Chunks of which figures are kept, and seconds over which pictures are counted."""
LATE_S = 0.001


class Figures:
    """What has left for viewers so far.

    Args:
        clock: seconds, monotonic.

    Attributes:
        chunks, frames, late: that began to leave; and chunks that were late.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.chunks = self.frames = self.late = 0
        self._latency_s: float | None = None
        self._camera_s: float | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._pictures: deque[float] = deque(maxlen=256)
        self._coded: set[int] = set()
        """Times of the chunk's pictures that were coded, in any codec."""
        self._due = 0
        """Pictures of the chunk that might have been."""

    def picture(self, packet: Packet) -> None:
        """One has left, perhaps in another codec than before."""
        if packet.pts not in self._coded:
            self._coded.add(packet.pts)
            self._pictures.append(self._clock())

    def chunk(self, shown: Shown, made_s: float | None, slack_s: float, thinned: bool) -> int:
        """One begins to leave; returns how many pictures of the one before were left out for a thin line.

        Args:
            shown: what is known of it.
            made_s: from its sampling until it was there; None: that is not known.
            slack_s: how long before it was due it was there.
            thinned: whether pictures are left out now.
        """
        left_out = max(0, self._due - len(self._coded))
        self._coded.clear()
        self._due = shown.frames if thinned else 0
        self.chunks, self.frames = self.chunks + 1, self.frames + shown.frames
        self.late += shown.late_s > LATE_S
        self._latency_s = self._latency_s if shown.latency_s is None else shown.latency_s
        if shown.camera and shown.camera.latency_s is not None:
            self._camera_s = shown.camera.latency_s
        self._recent.append(
            {
                "chunk": shown.chunk,
                "made_s": None if made_s is None else round(made_s, 4),
                "slack_s": round(slack_s, 4),
                "pts_s": round(shown.pts / VIDEO_RATE, 3),
                "events": len(shown.events),
            }
        )
        return left_out

    def told(self) -> dict[str, Any]:
        """As JSON."""
        since = self._clock() - RATED_S
        return {
            "chunks": self.chunks,
            "frames": self.frames,
            "fps": sum(at > since for at in self._pictures) / RATED_S,
            "latency_s": None if self._latency_s is None else round(self._latency_s, 4),
            **({} if self._camera_s is None else {"camera_s": round(self._camera_s, 4)}),
            "late_chunks": self.late,
            "recent": list(self._recent),
        }
