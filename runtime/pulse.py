"""A process's pulse: what it is at and for how long, told on the board now and then by a thread that does nothing else.

Who waits for a chunk can then tell a worker that is slow from one that is stuck or gone. Whoever watches over the run
reads there, without asking anyone, where the time goes and what it costs the host.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from conf.schema import LauncherConfig
from runtime.board import Board
from runtime.orders import host
from runtime.trace import Samples

PULSE_S = 1.0
"""Between two beats, at most; a short timeout has BEATS of them."""
BEATS = 4
WITHIN_SILENCE = 5
"""Beats within the time after which a process that says nothing is lost, at least: one that is late means nothing."""
STAGES = 64
"""Stages whose totals a beat tells, at most."""


class Doing(NamedTuple):
    """What a process is at; moments are of `time.perf_counter`.

    Attributes:
        at: the pass that it has been at the longest, or what it came to last, in words.
        since: when it came to that.
        moved: when something came in or was done there last.
        busy: whether it is at a pass.
        streams: when something came in or was done there last, by stream.
        stages: durations of all passes so far, by stage.
    """

    at: str
    since: float
    moved: float
    busy: bool = False
    streams: Mapping[int, float] = {}
    stages: Mapping[str, Samples] = {}


def beat_s(launcher: LauncherConfig) -> float:
    """Seconds between two beats of every process of a run."""
    silent_s = launcher.silent_s / WITHIN_SILENCE if launcher.in_place else PULSE_S
    return min(PULSE_S, launcher.timeout_s / BEATS, silent_s)


class Pulse(threading.Thread):
    """Says on the board, again and again, that a process lives and what it is at.

    Args:
        board: of the process.
        timeout_s: after which a stream of which nothing moves is looked into.
        every_s: between two beats, as `beat_s` says; None: what `timeout_s` asks for.

    Attributes:
        look: asked each time.
    """

    def __init__(self, board: Board, timeout_s: float, every_s: float | None = None):
        super().__init__(name="pulse", daemon=True)
        self._board, self._beats, self._over = board, 0, threading.Event()
        self._process = f"{host()}/{os.getpid()}"
        self._every_s = min(PULSE_S, timeout_s / BEATS) if every_s is None else every_s
        self.look: Callable[[], Doing]
        self.at("starting")

    def at(self, what: object) -> None:
        """The process has come to `what`, which `str` puts in words each time it is asked; says so at once."""
        now = time.perf_counter()
        self.look = lambda: Doing(str(what), now, now)
        self._tell()

    def run(self) -> None:
        with suppress(RuntimeError):  # the store is gone, and with it whoever listened
            while not self._over.wait(self._every_s):
                self._tell()

    def close(self) -> None:
        """Say no more. A daemon thread that returns from C++ into a dying interpreter may abort it: end it before."""
        self._over.set()
        self.join()

    def _tell(self) -> None:
        doing, now = self.look(), time.perf_counter()
        self._beats += 1
        told = {"beats": self._beats, "at": doing.at, "at_s": now - doing.since, "moved_s": now - doing.moved}
        streams = {stream: now - moved for stream, moved in doing.streams.items()}
        told |= {"busy": doing.busy, "streams": streams}
        told |= {"stages": totals(doing.stages), "longest": longest(doing.stages)}
        cost = {"process": self._process, "cpu_s": time.process_time(), "now_s": now}
        self._board.tell(key(self._board.index), told | cost)


def totals(stages: Mapping[str, Samples]) -> dict[str, list[float]]:
    """[passes, seconds] of every stage; of the first STAGES, should there be more. Others may add to them meanwhile."""
    known = list(dict(stages).items())[:STAGES]
    return {name: [samples.count, round(samples.total, 6)] for name, samples in known}


def longest(stages: Mapping[str, Samples]) -> dict[str, float]:
    """Seconds of the longest pass of the same stages, of which there was one."""
    known = list(dict(stages).items())[:STAGES]
    return {name: round(samples.longest, 6) for name, samples in known if samples.count}


def stage_of(at: str) -> str:
    """The stage of a pass in words, `step0 of chunk 3`."""
    return at.partition(" of chunk ")[0]


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

    def slow(self) -> dict[int, tuple[str, float]]:
        """Every worker that is alive and has been at one pass for long: (the pass in words, seconds so far).

        Empty if there is none: then what is waited for is stuck, and will not come.
        """
        found = {}
        for worker, pulse, ago in self._alive():
            at_s = pulse["at_s"] + ago
            if pulse["busy"] and at_s >= self._limit_s / 2:
                found[worker] = pulse["at"], at_s
        return found

    def moves(self, stream: int) -> bool:
        """Whether anything came or was done for a stream within the limit, anywhere: short passes add up, too."""
        moved = (pulse["streams"].get(str(stream), inf) + ago for _, pulse, ago in self._alive())
        return min(moved, default=inf) <= self._limit_s

    def _alive(self) -> Iterator[tuple[int, dict[str, Any], float]]:
        """(worker, its pulse, seconds since that was heard) of every worker that has been heard within the limit."""
        now = self._clock()
        for worker, process in enumerate(self._processes):
            pulse = self._board.told(key(process))
            if pulse is None:
                continue
            beats, since = self._seen.get(worker, (None, now))
            if pulse["beats"] != beats:
                since = now
                self._seen[worker] = pulse["beats"], now
            if now - since <= self._limit_s:
                yield worker, pulse, now - since

    def news(self, slow: dict[int, tuple[str, float]]) -> dict[int, tuple[str, float]]:
        """Those of `slow` that were not in it the last time, or were at something else."""
        known, self._named = self._named, {worker: at for worker, (at, _) in slow.items()}
        return {worker: found for worker, found in slow.items() if known.get(worker) != found[0]}
