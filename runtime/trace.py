"""Where the time goes: spans of work, written as they end, and statistics of bounded size.

`trace.json` is the Trace Event format (one track per worker) that Perfetto and chrome://tracing open, also
when the run was killed and the closing bracket is missing.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECENT = 1000
"""Samples behind every percentile: the latest this many, so that memory does not grow with the stream."""


class Samples:
    """Recent durations, and the sum of all."""

    def __init__(self):
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.recent.append(value)
        self.total += value
        self.count += 1

    def percentile(self, p: float) -> float | None:
        """The nearest-rank percentile of the recent samples; None without samples."""
        ordered = sorted(self.recent)
        return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] if ordered else None

    def summary(self) -> dict[str, float | None]:
        return {"p50": self.percentile(50), "p99": self.percentile(99)}


class Trace:
    """Spans of one worker.

    Args:
        path: trace file; None: statistics only.
        worker: the track's name.
        clock: seconds, monotonic.
    """

    def __init__(self, path: str | Path | None = None, worker: str = "worker0", clock=time.perf_counter):
        self.stages: dict[str, Samples] = defaultdict(Samples)
        self.worker, self.clock, self.opened = worker, clock, clock()
        self._file = Path(path).open("w") if path else None  # noqa: SIM115  held open while the stream lasts
        self._write({"name": "thread_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": worker}}, "[\n")

    def _write(self, event: dict, before: str = ",\n") -> None:
        if self._file:
            self._file.write(before + json.dumps(event))

    @contextmanager
    def span(self, stage: str, chunk: int) -> Iterator[None]:
        """Time the enclosed work as `stage` of `chunk`."""
        start = self.clock()
        yield
        duration = self.clock() - start
        self.stages[stage].add(duration)
        micro = {"ts": round((start - self.opened) * 1e6), "dur": round(duration * 1e6)}
        self._write({"name": stage, "ph": "X", "pid": 0, "tid": 0, **micro, "args": {"chunk": chunk}})

    def flush(self) -> None:
        if self._file:
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.write("\n]\n")
            self._file.close()
            self._file = None

    def busy(self, wall_s: float) -> dict[str, dict]:
        """Per stage: worker, share of `wall_s` spent in it, and recent durations."""
        return {
            name: {"worker": self.worker, "busy_fraction": s.total / wall_s if wall_s else None, "time_s": s.summary()}
            for name, s in self.stages.items()
        }
