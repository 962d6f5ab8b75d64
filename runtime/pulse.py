"""A worker's pulse: what it is at and for how long, told on the board now and then by a thread that does nothing else.

Who waits for a chunk can then tell a worker that is slow from one that is stuck or gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from runtime.board import Board

BEATS = 4
"""Beats per timeout."""
LONGEST_S = 5.0
"""Between two beats, at most."""


class Doing(NamedTuple):
    """A pass that a worker is at: in words, and for how many seconds."""

    what: str
    seconds: float


class Pulse(threading.Thread):
    """Tells what a worker is at.

    Args:
        board: where.
        worker: whose pulse.
        timeout_s: after which a stream of which nothing moves is looked into.
        doing: what the worker's threads are at.
    """

    def __init__(self, board: Board, worker: int, timeout_s: float, doing: Callable[[], list[Doing]]):
        super().__init__(name="pulse", daemon=True)
        self._board, self._key, self._doing = board, key(worker), doing
        self._every_s = min(LONGEST_S, timeout_s / BEATS)
        self._closed = threading.Event()
        self._beats = 0

    def run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._beats += 1
            try:
                self._board.tell(self._key, {"beats": self._beats, "doing": self._doing()})
            except RuntimeError:
                return  # the store is gone, and with it whoever would read this

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._closed.set()
        if self.is_alive():
            self.join()


def key(worker: int) -> str:
    """Where a worker's pulse is told."""
    return f"pulse/{worker}"


class Watch:
    """Tells slow from stuck, for whoever waits.

    Args:
        board: where pulses are told.
        workers: how many there are.
        limit_s: that nothing moved of what is waited for.
        clock: seconds.
    """

    def __init__(self, board: Board, workers: int, limit_s: float, clock: Callable[[], float]):
        self._board, self._workers, self._limit_s, self._clock = board, workers, limit_s, clock
        self._seen: dict[int, tuple[int, float]] = {}
        """The last beat of each worker that differed from the one before, and when it was seen."""
        self._named: set[tuple[int, str]] = set()

    def slow(self) -> list[tuple[int, Doing]]:
        """(worker, what) of every worker that is alive and has been at one pass for long.

        Empty if there is none: then what is waited for is stuck, and will not come.
        """
        found, now = [], self._clock()
        for worker in range(self._workers):
            pulse = self._board.told(key(worker))
            if pulse is None:
                continue
            beats, since = self._seen.get(worker, (None, now))
            if pulse["beats"] != beats:
                since = now
                self._seen[worker] = pulse["beats"], now
            if now - since <= self._limit_s:
                passes = (Doing(what, seconds + now - since) for what, seconds in pulse["doing"])
                found += [(worker, doing) for doing in passes if doing.seconds >= self._limit_s / 2]
        return found

    def news(self, slow: list[tuple[int, Doing]]) -> list[tuple[int, Doing]]:
        """Those of `slow` that were not in it the last time."""
        known, self._named = self._named, {(worker, doing.what) for worker, doing in slow}
        return [(worker, doing) for worker, doing in slow if (worker, doing.what) not in known]
