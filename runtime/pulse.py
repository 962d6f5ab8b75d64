"""A worker's pulse: what it is at and for how long, told on the board now and then by a thread that does nothing else.

Who waits for a chunk can then tell a worker that is slow from one that is stuck or gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runtime.board import Board

BEATS = 4
"""Beats per timeout."""
LONGEST_S = 5.0
"""Between two beats, at most."""


WAITING = "waiting"


class Doing(NamedTuple):
    """What a worker is at.

    Attributes:
        at: the pass that it has been at the longest, in words; WAITING: none.
        at_s: for how many seconds.
        moved_s: seconds since something came in or was done there.
    """

    at: str
    at_s: float
    moved_s: float


class Pulse(threading.Thread):
    """Tells what a worker is at.

    Args:
        board: where.
        timeout_s: after which a stream of which nothing moves is looked into.
        doing: what this process is at.
    """

    def __init__(self, board: Board, timeout_s: float, doing: Callable[[], Doing]):
        super().__init__(name="pulse", daemon=True)
        self._board, self._key, self._doing = board, key(board.index), doing
        self._every_s = min(LONGEST_S, timeout_s / BEATS)
        self._closed = threading.Event()
        self._beats = 0

    def run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._beats += 1
            try:
                self._board.tell(self._key, {"beats": self._beats} | self._doing()._asdict())
            except RuntimeError:
                return  # the store is gone, and with it whoever would read this

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._closed.set()
        if self.is_alive():
            self.join()


def key(process: int) -> str:
    """Where the pulse of a plan's process is told."""
    return f"pulse/{process}"


class Watch:
    """Tells slow from stuck, for whoever waits.

    Args:
        board: where pulses are told.
        processes: by worker, the one whose pulse is the worker's.
        limit_s: that nothing moved of what is waited for.
        clock: seconds.
    """

    def __init__(self, board: Board, processes: Sequence[int], limit_s: float, clock: Callable[[], float]):
        self._board, self._processes, self._limit_s, self._clock = board, tuple(processes), limit_s, clock
        self._seen: dict[int, tuple[int, float]] = {}
        """The last beat of each worker that differed from the one before, and when it was seen."""
        self._named: dict[int, str] = {}

    def slow(self) -> dict[int, Doing]:
        """Every worker that is alive and has been at one pass for long, and what it is at.

        Empty if there is none: then what is waited for is stuck, and will not come.
        """
        found, now = {}, self._clock()
        for worker, process in enumerate(self._processes):
            pulse = self._board.told(key(process))
            if pulse is None:
                continue
            beats, since = self._seen.get(worker, (None, now))
            if pulse["beats"] != beats:
                since = now
                self._seen[worker] = pulse["beats"], now
            doing = Doing(pulse["at"], pulse["at_s"] + now - since, pulse["moved_s"])
            if now - since <= self._limit_s and doing.at != WAITING and doing.at_s >= self._limit_s / 2:
                found[worker] = doing
        return found

    def news(self, slow: dict[int, Doing]) -> dict[int, Doing]:
        """Those of `slow` that were not in it the last time, or were at something else."""
        known, self._named = self._named, {worker: doing.at for worker, doing in slow.items()}
        return {worker: doing for worker, doing in slow.items() if known.get(worker) != doing.at}
