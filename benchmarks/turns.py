"""Cuts by turns within one run: so many chunks with them, as many without. What `benchmarks.recover_cost` looks at.

A file of its own, so that processes of a run, which arm themselves while they import the runtime, import nothing else.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

TURN, MOMENTS = "EVERFRAME_TURN", "EVERFRAME_MOMENTS"
"""Environment variables: chunks of a turn, and the file that gets the moment at which each chunk was sampled."""


def cut(chunk: int, turn: int) -> bool:
    """Whether a chunk is of a turn with cuts."""
    return chunk // turn % 2 == 1


def arm() -> None:
    """In the process that samples: neither cuts nor a journal in every other turn; note when chunks are sampled."""
    from runtime.cadence import Cadence
    from runtime.journal import Journal

    turn, (due, append) = int(os.environ[TURN]), (Cadence.due, Journal.append)
    moments = partial(open, os.environ[MOMENTS], "a", buffering=1)
    files: list[Any] = []

    def by_turns(self: Cadence, chunk: int) -> bool:
        if not files:
            files.append(moments())
        files[0].write(f"{chunk} {time.perf_counter()}\n")
        return cut(chunk, turn) and due(self, chunk)

    def appended(self: Journal, line: Any) -> None:
        if cut(line.chunk, turn):
            append(self, line)

    Cadence.due, Journal.append = by_turns, appended
