"""Speech that is given all at once and sent as it is needed, so that little of it is lost by an interruption."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

PIECE_S = 0.5
"""Length of a message, in seconds."""
HELD_S = 5.0
"""Seconds that the server holds at most; it would take sixty."""


class Ahead:
    """A queue of sound, emptied by a thread of its own at the pace at which the server speaks, once it has begun.

    Args:
        send: sends float32 samples of a rate.
        over: what it raises once the connection has ended.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        send: Callable[[np.ndarray, int], None],
        over: type[Exception],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._send, self._over, self._clock = send, over, clock
        self._changed = threading.Condition()
        self._pieces: deque[tuple[np.ndarray, int]] = deque()
        self._until: float | None = None
        """When the server will have said all that it holds; None: it has not begun to speak."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, samples: np.ndarray, rate: int) -> None:
        """Sound behind all that is here: float32 [n], mono."""
        size = max(1, int(PIECE_S * rate))
        with self._changed:
            self._pieces += [(samples[at : at + size], rate) for at in range(0, len(samples), size)]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="speech", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def told(self, held_s: float) -> None:
        """The server holds so many seconds now."""
        with self._changed:
            self._until = self._clock() + held_s
            self._changed.notify_all()

    def forget(self) -> None:
        """Nothing of this is to be said, nor is what the server holds."""
        with self._changed:
            self._pieces.clear()
            self._until = self._until and self._clock()

    def close(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

    def wait_s(self) -> float | None:
        """Seconds until the next piece may be sent; 0: now; None: there is none, or no time is known."""
        if not self._pieces or self._until is None:
            return None
        return max(0.0, self._until - self._clock() + PIECE_S - HELD_S)

    def take(self) -> tuple[np.ndarray, int]:
        """The next piece, counted as held by the server from now on."""
        samples, rate = self._pieces.popleft()
        self._until = max(self._until, self._clock()) + len(samples) / rate
        return samples, rate

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (wait := self.wait_s()) != 0:
                    self._changed.wait(wait)
                if self._closed:
                    return
                piece = self.take()
            try:
                self._send(*piece)
            except self._over:
                return
