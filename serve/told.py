"""What is told of one session to those who look after the server: counters, its trace, and lateness, for admission."""

from __future__ import annotations

from collections.abc import Callable

from serve.media import Shown
from serve.metrics import Metrics
from serve.tracing import Silent


class Told:
    """Of one session.

    Args:
        model: its name.
        metrics: counts what happens.
        late: takes the model and the seconds by which a chunk was late.
        began: begins the session's trace, once it has a place.
    """

    def __init__(
        self, model: str, metrics: Metrics, late: Callable[[str, float], None], began: Callable[[], Silent] = Silent
    ):
        self._model, self._metrics, self._late, self._begin = model, metrics, late, began
        self._trace: Silent | None = None

    def began(self) -> None:
        """It was given a place."""
        self._metrics.began(self._model)
        self._trace = self._begin()

    def chunk(self, shown: Shown, made_s: float | None, sampled_s: float | None, first_s: float | None) -> None:
        """A chunk begins to leave.

        Args:
            shown: what is known of it.
            made_s: from its sampling until it was there; None: that is not known.
            sampled_s: since its sampling, likewise.
            first_s: since the session was opened, of its first chunk; None: it is another.
        """
        if first_s is not None:
            self._metrics.first_frame(self._model, first_s)
        self._metrics.chunk(self._model, shown.frames, made_s, shown.late_s)
        if shown.latency_s is not None:
            self._metrics.control(self._model, shown.latency_s)
        if shown.camera and shown.camera.latency_s is not None:
            self._metrics.camera(self._model, shown.camera.latency_s)
        self._late(self._model, shown.late_s)
        if self._trace:
            self._trace.chunk(shown, sampled_s)

    def sound_late(self, seconds: float) -> None:
        """So much sound came after its chunk was sampled."""
        if seconds > 0:
            self._metrics.audio_late(self._model, seconds)

    def dropped(self, frames: int, reason: str) -> None:
        """So many frames were made and not sent: `rate`, `queue`."""
        if frames:
            self._metrics.dropped(self._model, frames, reason)

    def key_frame(self, cause: str) -> None:
        """One was asked for: `join`, `loss`, `queue`, `trim`, `rate`."""
        self._metrics.key_frame(self._model, cause)

    def frozen(self, seconds: float) -> None:
        """Its picture stood still so long."""
        self._metrics.frozen(self._model, seconds)

    def interrupted(self, seconds: float) -> None:
        """It was silent so long after it was to be."""
        self._metrics.interrupt(self._model, seconds)

    def ended(self, reason: str) -> None:
        """It is over."""
        if self._trace:
            self._metrics.ended(self._model, reason)
            self._trace.end(reason)
