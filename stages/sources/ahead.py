"""Live sound that is decoded, read by a thread: who waits inside a decoder could not leave it and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from stages.sources.audio import NOTHING, RATE, SAMPLE, Pcm
from stages.sources.backlog import Backlog
from stages.sources.live import POLL_S, Turned, turned

BLOCK, HELD = RATE // 50, 2 * RATE
"""Samples that are read at a time, and that are held at most."""


class Ahead:
    """A source of live sound, opened and read by a thread of its own.

    Args:
        open: opens the source, given the event that ends it.
        stop: ends the sound, and releases a blocked `read`.
        name: the setting that it is read for.
        backlog: of its bytes, all of them, where another process may have to decode them again.
        position: of the samples that come first, among those that another process has decoded.

    Attributes:
        position: of the sample that comes next, in bytes, as that of bare sound.
    """

    rate, duration_s = RATE, None

    def __init__(
        self,
        open: Callable[..., Pcm],
        stop: threading.Event,
        name: str,
        backlog: Backlog | None = None,
        position: int = 0,
    ):
        self.name, self._open, self._stop = name, open, stop
        self._backlog, self.position = backlog, position
        self._ended = threading.Event()
        """Set when nothing more is read of it."""
        self._changed = threading.Condition()
        self._held, self._over = NOTHING, False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="live-sound", daemon=True)
        self._thread.start()

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32 [<= samples], waiting for them; fewer only at the end or when stopped.

        Raises:
            UserError: the source could not be opened.
            Turned: they were waited for when the run's generation ended; nothing is lost of them.
        """
        parts, missing = [NOTHING], samples
        with self._changed:
            while missing:
                part, self._held = self._held[:missing], self._held[missing:]
                parts.append(part)
                missing -= len(part)
                self._changed.notify_all()
                if not missing or self._over or (self._stop.is_set() and not turned(self._stop)):
                    break
                if turned(self._stop):
                    self._held = np.concatenate([*parts, self._held])
                    raise Turned
                self._changed.wait(POLL_S)
            if self._failure is not None:
                raise self._failure
            self.position += SAMPLE * sum(map(len, parts))
        return np.concatenate(parts)

    def drop(self, position: int) -> None:
        """A decoder begins at the beginning, so nothing may go."""

    def wire(self, stop: threading.Event) -> None:
        """Go on for a stream with another stop event."""
        with self._changed:
            self._stop = stop
            self._changed.notify_all()

    def close(self) -> None:
        """End it, for whoever reads as well."""
        self._ended.set()
        with self._changed:
            self._over, self._held = True, NOTHING
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        source = None
        try:
            source, passed = self._open(self._ended, backlog=self._backlog), self._passed()
            while passed > 0 and len(block := source.read(min(passed, HELD))):
                passed -= len(block)
            while self._room() and len(block := source.read(BLOCK)):
                with self._changed:
                    self._held = np.concatenate([self._held, block])
                    self._changed.notify_all()
        except Exception as error:  # whoever reads is told
            self._failure = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            if source is not None:
                source.close()

    def _passed(self) -> int:
        """Samples that another process has taken; nothing of them comes again where its bytes could not be kept."""
        return self.position // SAMPLE if self._backlog and self._backlog.begun else 0

    def _room(self) -> bool:
        with self._changed:
            while len(self._held) >= HELD and not self._ended.is_set():
                self._changed.wait(POLL_S)
        return not self._ended.is_set()
