"""A session's camera, as the gateway has it. Pictures are passed on as they came: only their heads are looked at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, NamedTuple

from serve.problems import Problem
from stages.sources.film import MOST_PIXELS

MOST_BYTES = 1 << 18
"""Of a picture."""
PER_SECOND, BURST = 30.0, 60.0
"""Pictures that are seen; others are answered with an error."""
TURN_S = 1.0
"""Seconds after which another viewer's camera is looked at."""
KEPT = 256
"""Pictures and chunks that are remembered until they are shown."""
START, SCAN = b"\xff\xd8\xff", 0xDA
"""How JPEG begins, and the marker behind which pixels come (ITU-T T.81, B.1.1.3)."""
SEGMENTS = 64
"""Of a head, that are looked at: cameras write ten, and whoever writes thousands costs the gateway time."""
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of the header that says how large a picture is."""


def size(jpeg: bytes) -> tuple[int, int] | None:
    """Width and height, as a picture says in its head; None: it says none, so it is no JPEG."""
    at = 2 if jpeg.startswith(START) else len(jpeg)
    for _ in range(SEGMENTS):
        if at + 9 > len(jpeg) or jpeg[at] != 0xFF or jpeg[at + 1] == SCAN:
            break
        if jpeg[at + 1] in FRAMES:
            return int.from_bytes(jpeg[at + 7 : at + 9]), int.from_bytes(jpeg[at + 5 : at + 7])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return None


def check(jpeg: bytes) -> None:
    """Refuse what no stage is sent.

    Raises:
        Problem: `too_large`, or `unsupported_media`.
    """
    if len(jpeg) > MOST_BYTES:
        detail = f"session.frame: has {len(jpeg)} bytes, and at most {MOST_BYTES} are taken; send a smaller picture"
        raise Problem("too_large", detail)
    found = size(jpeg)
    if found is None or 0 in found:
        raise Problem("unsupported_media", "session.frame: is no JPEG; send pictures as JPEG")
    if found[0] * found[1] > MOST_PIXELS:
        detail = f"session.frame: has {found[0]} x {found[1]} pixels, and at most {MOST_PIXELS} are taken"
        raise Problem("too_large", f"{detail}; send a smaller picture")


class Sight(NamedTuple):
    """What a chunk is the first to show of a camera.

    Attributes:
        at: when the first new picture was taken, in seconds of the camera's clock.
        after_s: from the chunk's first frame to the one that shows it.
        latency_s: from the gateway's having it to that frame's leaving; None: it is not known any more.
    """

    at: float
    after_s: float
    latency_s: float | None


class Sighted:
    """The camera of one session, from a picture's coming to its leaving; moments are of the gateway's clock."""

    def __init__(self):
        self._by: Any = None
        self._seen_at = 0.0
        self._came: OrderedDict[float, float] = OrderedDict()
        """When pictures came, by when they were taken."""
        self._chunks: OrderedDict[int, tuple[float, int]] = OrderedDict()
        """By chunk that was sampled and not shown yet, what `Sight` says of it."""

    def turn(self, by: Any, viewers: Collection[Any], now: float) -> bool:
        """Whether a viewer's camera is looked at: one is at a time."""
        if self._by is not by and self._by in viewers and now - self._seen_at < TURN_S:
            return False
        self._by, self._seen_at = by, now
        return True

    def accept(self, at: float, now: float) -> None:
        """A picture came, and is passed on."""
        self._came[at] = now
        _forget(self._came)

    def sampled(self, chunk: int, at: float, frame: int) -> None:
        """A chunk was sampled, whose frame `frame` is the first to show something new."""
        self._chunks[chunk] = at, frame
        _forget(self._chunks)

    def shown(self, chunk: int, fps: float, now: float) -> Sight | None:
        """A chunk begins to leave; None: it shows nothing new."""
        found = self._chunks.pop(chunk, None)
        if found is None:
            return None
        at, frame = found
        came, after_s = self._came.get(at), frame / fps
        return Sight(at, after_s, None if came is None else now + after_s - came)


def _forget(held: OrderedDict) -> None:
    while len(held) > KEPT:
        held.popitem(last=False)
