"""How long a session goes on: its clocks, each with what it means when it has run out. They can be made to stand still."""

from __future__ import annotations

from collections.abc import Callable

from conf.schema.serve import ServeConfig

WARNED_S = 30.0
"""Before its end, when everyone is told of it."""
WHY = {"limit": "its time will be over", "idle": "nothing is said, pressed or typed"}


class Term:
    """Of one session; moments that it is given are of the gateway's clock.

    Args:
        serve: settings.
        clock: seconds, monotonic.
    """

    def __init__(self, serve: ServeConfig, clock: Callable[[], float]):
        self._serve, self._clock = serve, clock
        self._stood = 0.0
        """Seconds for which the clocks have stood still so far."""
        self._still: float | None = None
        """Since when they do; None: they go."""
        self.begun = self._active = self._now(clock())
        self.length_s = serve.session_s
        """Seconds from its beginning to its end at the latest."""
        self._unwatched: float | None = self.begun
        """Since when nobody watches; None: someone does."""
        self._warned = False

    def begin(self) -> None:
        """It has its place."""
        self.begun = self._active = self._now(self._clock())

    def stand(self) -> None:
        """The clocks stand still from now on."""
        self._still = self._clock()

    def go_on(self) -> float:
        """They go on; returns the seconds for which they stood."""
        stood = self._clock() - self._still
        self._stood, self._still = self._stood + stood, None
        return stood

    def _now(self, now: float) -> float:
        """A moment, by the clocks themselves."""
        return (now if self._still is None else self._still) - self._stood

    def limit(self, seconds: float) -> None:
        """It is to last so long at most."""
        self.length_s = min(self.length_s, seconds)

    def acted(self) -> None:
        """Something was said, pressed or typed."""
        self._active = self._now(self._clock())

    def watched(self, by: int) -> None:
        """So many watch it."""
        self._unwatched = None if by else self._now(self._clock())

    @property
    def age_s(self) -> float:
        """Seconds since it had its place."""
        return self._now(self._clock()) - self.begun

    def over(self, now: float, running: bool) -> str | None:
        """Why it is to end now: `lease`, `limit`, `idle`; None: it is not. Who waits for a place has a lease alone."""
        now = self._now(now)
        if self._unwatched is not None and now - self._unwatched > self._serve.lease_s:
            return "lease"
        reason, left = self._nearest(now)
        return reason if running and left <= 0 else None

    def warning(self, now: float) -> tuple[float, str] | None:
        """Seconds that are left and what to say of it, once WARNED_S before the end; None: nothing now."""
        reason, left = self._nearest(self._now(now))
        if left > WARNED_S:
            self._warned = False
            return None
        if self._warned or left >= min(self.length_s, self._serve.idle_s) - 1:  # it was to be that short
            return None
        self._warned = True
        return left, f"the session ends in {left:.0f} s: {WHY[reason]}"

    def _nearest(self, now: float) -> tuple[str, float]:
        left = {"limit": self.begun + self.length_s - now, "idle": self._active + self._serve.idle_s - now}
        return min(left.items(), key=lambda one: one[1])
