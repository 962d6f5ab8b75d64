"""How many bits a second a viewer's line takes, from what the viewer's browser says of it.

Two things are said: an estimate of what gets through (REMB, draft-alvestrand-rmcat-remb-03), and which share of the
packets was lost (receiver reports, RFC 3550 section 6.4.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import exp

from stages.sinks.coded import LEAST_BITS, START_BITS

START_BPS, FLOOR_BPS = START_BITS, LEAST_BITS
UNKNOWN_BPS = 2_500_000
"""Not exceeded where no estimate ever comes."""
SHARE = 0.85
"""Of the estimate that is used: what is left over empties the queues on the way."""
GROWTH = 1.08
"""Per second, at most."""
HEAVY_LOSS, NO_LOSS = 0.10, 0.02
"""Shares of packets: above the first the line is too narrow, whatever is estimated; below the second it is well."""
LOSS_S = 3.0
"""Over which losses are averaged: small pictures are a few packets between two reports, one of which is a quarter."""
ROOM, JAM = 1.25, 0.85
"""An estimate begins at what arrives, rises to half above it and no further, and falls to 0.85 of it in a jam. So only
one below JAM of what is sent tells of a jam, and one above ROOM of it says that the line is not full, not how wide it
is: small pictures would otherwise talk themselves down to the floor on any line, and stay there."""
NARROW_S = 2.0
"""How long such estimates come one after the other before frames are left out for them: a browser that was busy, or has
only begun, says so once, and its picture would be poorer for as long as growing back takes."""
RECOVERED = 1.2
"""Of the floor: from there on every frame is sent again."""
WINDOW_S, LEAST_S = 2.0, 0.5
"""Over which it is counted what is sent: key frames are many times as large as others."""


class Rate:
    """Decides what a viewer is sent.

    Sound is not taken off: a browser's estimate is of packets that bear their time of sending (abs-send-time), and here
    those are the pictures'.

    Args:
        clock: seconds.

    Attributes:
        every: 2: every second frame is sent, because even the least bit rate is too much.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._rate, self._ceiling, self._grown_at = float(START_BPS), float(UNKNOWN_BPS), clock()
        self._sent: deque[tuple[float, int]] = deque()
        self._began_at = 0.0
        self._loss, self._reported_at = 0.0, clock()
        self._jammed_at: float | None = None
        """Since when it has been told of a jam; None: the last estimate told of none."""
        self.every = 1

    @property
    def bits_per_second(self) -> int:
        """Of pictures, at least FLOOR_BPS."""
        return round(max(self._rate, FLOOR_BPS))

    def sent(self, size: int) -> None:
        """A coded picture of `size` bytes is on its way."""
        now = self._clock()
        if not self._sent:
            self._began_at = now
        self._sent.append((now, 8 * size))
        self._forget()

    def estimate(self, bits_per_second: float) -> None:
        """What gets through, as the viewer has it."""
        self._forget()
        seconds = min(max(self._clock() - self._began_at, LEAST_S), WINDOW_S)
        sent = sum(bits for _, bits in self._sent) / seconds
        self._ceiling = bits_per_second * SHARE
        if bits_per_second >= JAM * sent:
            self._jammed_at = None
        elif self._jammed_at is None:
            self._jammed_at = self._clock()
        if bits_per_second > ROOM * sent:
            self._ceiling = max(self._ceiling, START_BPS)
        elif bits_per_second >= JAM * sent:
            self._ceiling = max(self._ceiling, self._rate)
        self._grow()

    def lost(self, share: float) -> None:
        """Which share of the packets was lost since the last report, 0 to 1."""
        now = self._clock()
        passed, self._reported_at = now - self._reported_at, now
        self._loss += (share - self._loss) * (1 - exp(-passed / LOSS_S))
        if self._loss > HEAVY_LOSS:
            self._rate *= (1 - self._loss / 2) ** min(passed, 1.0)
            self._grown_at, self._jammed_at = now, now - NARROW_S
            self._settle()
        elif share < NO_LOSS:
            self._grow()

    def _grow(self) -> None:
        """Down at once, up slowly: the viewer sees a jam at once and room only by and by."""
        now = self._clock()
        passed, self._grown_at = min(now - self._grown_at, 1.0), now
        self._rate = min(self._ceiling, self._rate * GROWTH**passed)
        self._settle()

    def _settle(self) -> None:
        self._rate = max(self._rate, FLOOR_BPS / 2)
        jammed = self._jammed_at is not None and self._clock() - self._jammed_at >= NARROW_S
        if self._rate < FLOOR_BPS and jammed:
            self.every = 2
        elif self._rate >= RECOVERED * FLOOR_BPS:
            self.every = 1

    def _forget(self) -> None:
        until = self._clock() - WINDOW_S
        while self._sent and self._sent[0][0] < until:
            self._sent.popleft()
