"""How many bits a second a viewer's line takes, from what the viewer's browser says of it.

Two things are said: an estimate of what gets through (REMB, draft-alvestrand-rmcat-remb-03), and which share of the
packets was lost (receiver reports, RFC 3550 section 6.4.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

START_BPS, FLOOR_BPS = 600_000, 150_000
UNKNOWN_BPS = 2_500_000
"""Not exceeded where no estimate ever comes."""
SHARE = 0.85
"""Of the estimate that is used: what is left over empties the queues on the way."""
GROWTH = 1.08
"""Per second, at most."""
HEAVY_LOSS, NO_LOSS = 0.10, 0.02
"""Shares of packets: above the first the line is too narrow, whatever is estimated; below the second it is well."""
ROOM = 1.25
"""An estimate is at most about half above what arrives. So one that is well above what is sent says that the line is
not full, not how wide it is: a still picture would otherwise talk itself down to the floor, and stay there."""
RECOVERED = 1.2
"""Of the floor: from there on every frame is sent again."""
WINDOW_S = 1.0


class Rate:
    """Decides what a viewer is sent.

    Args:
        sound_bps: what sound takes of the line, bits per second.
        clock: seconds.

    Attributes:
        every: 2: every second frame is sent, because even the least bit rate is too much.
    """

    def __init__(self, sound_bps: float, clock: Callable[[], float]):
        self._sound_bps, self._clock = sound_bps, clock
        self._rate, self._ceiling, self._grown_at = float(START_BPS), float(UNKNOWN_BPS), clock()
        self._sent: deque[tuple[float, int]] = deque()
        self.every = 1

    @property
    def bits_per_second(self) -> int:
        """Of pictures, at least FLOOR_BPS."""
        return round(max(self._rate, FLOOR_BPS))

    def sent(self, size: int) -> None:
        """A coded picture of `size` bytes is on its way."""
        self._sent.append((self._clock(), 8 * size))
        self._forget()

    def estimate(self, bits_per_second: float) -> None:
        """What gets through, as the viewer has it."""
        self._ceiling = bits_per_second * SHARE - self._sound_bps
        self._forget()
        if bits_per_second > ROOM * sum(bits for _, bits in self._sent) / WINDOW_S:
            self._ceiling = max(self._ceiling, START_BPS)
        self._grow()

    def lost(self, share: float) -> None:
        """Which share of the packets was lost since the last report, 0 to 1."""
        if share > HEAVY_LOSS:
            self._rate *= 1 - share / 2
            self._grown_at = self._clock()
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
        if self._rate < FLOOR_BPS:
            self.every = 2
        elif self._rate >= RECOVERED * FLOOR_BPS:
            self.every = 1

    def _forget(self) -> None:
        until = self._clock() - WINDOW_S
        while self._sent and self._sent[0][0] < until:
            self._sent.popleft()
