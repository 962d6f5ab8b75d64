"""Live sound that is decoded, read by a thread: who waits inside a decoder could not leave it and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from stages.sources.audio import NOTHING, RATE, Pcm
from stages.sources.live import POLL_S, Turned, turned

BLOCK, HELD = RATE // 50, 2 * RATE
"""Samples that are read at a time, and that are held at most."""


class Ahead:
    """A source of live sound, opened and read by a thread of its own.

    Args:
        open: opens the source, given the event that ends it.
        stop: ends the sound, and releases a blocked `read`.
        name: the setting that it is read for.
    """

    rate, duration_s = RATE, None

    def __init__(self, open: Callable[[threading.Event], Pcm], stop: threading.Event, name: str):
        self.name, self._open, self._stop = name, open, stop
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
        return np.concatenate(parts)

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
            source = self._open(self._ended)
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

    def _room(self) -> bool:
        with self._changed:
            while len(self._held) >= HELD and not self._ended.is_set():
                self._changed.wait(POLL_S)
        return not self._ended.is_set()
