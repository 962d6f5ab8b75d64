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


TOGETHER = 64
"""Spans written at once."""


class Samples:
    """Recent durations, and the sum of all."""

    def __init__(self):
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.recent.append(value)
        self.total += value
        self.count += 1

    @property
    def last(self) -> float | None:
        """The latest sample."""
        return self.recent[-1] if self.recent else None

    @property
    def mean(self) -> float | None:
        """Of all samples; None without any."""
        return self.total / self.count if self.count else None

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
        worker, track: the track's name and number.
        clock: seconds, monotonic, and the same in every process of a machine.
    """

    def __init__(
        self, path: str | Path | None = None, worker: str = "worker0", track: int = 0, clock=time.perf_counter
    ):
        self.stages: dict[str, Samples] = defaultdict(Samples)
        self._spans: list[tuple[str, int, float, float]] = []
        self.worker, self.track, self.clock, self.opened = worker, track, clock, clock()
        self._file = Path(path).open("w") if path else None  # noqa: SIM115  held open while the stream lasts
        self._write({"name": "thread_name", "ph": "M", "pid": 0, "tid": track, "args": {"name": worker}}, "[\n")

    def _write(self, event: dict, before: str = ",\n") -> None:
        if self._file:
            self._file.write(before + json.dumps(event))

    @contextmanager
    def span(self, stage: str, chunk: int) -> Iterator[None]:
        """Time the enclosed work as `stage` of `chunk`."""
        start = self.clock()
        yield
        self.add(stage, chunk, start, self.clock() - start)

    def add(self, stage: str, chunk: int, start: float, duration: float) -> None:
        """A span that was timed elsewhere; times on this trace's clock."""
        self.stages[stage].add(duration)
        if self._file:
            self._spans.append((stage, chunk, start, duration))
            if len(self._spans) == TOGETHER:
                self._write_spans()

    def _write_spans(self) -> None:
        """Several at a time: there are some on every hop, and code that runs now and then is slow each time."""
        for stage, chunk, start, duration in self._spans:
            self._file.write(
                f',\n{{"name": "{stage}", "ph": "X", "pid": 0, "tid": {self.track}, "ts": {round(start * 1e6)}, '
                f'"dur": {round(duration * 1e6)}, "args": {{"chunk": {chunk}}}}}'
            )
        self._spans.clear()

    def flush(self) -> None:
        if self._file:
            self._write_spans()
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._write_spans()
            self._file.write("\n]\n")
            self._file.close()
            self._file = None

    def busy(self, wall_s: float) -> dict[str, dict]:
        """Per stage: worker, share of `wall_s` spent in it, and recent durations."""
        return {
            name: {"worker": self.worker, "busy_fraction": s.total / wall_s if wall_s else None, "time_s": s.summary()}
            for name, s in self.stages.items()
        }


def worker_trace(folder: Path, index: int, name: str | None = None) -> Trace:
    """The trace of process `index` of several, in a part file of its own; `name`: of its worker, if not the same."""
    return Trace(folder / f"trace.{index}.part", f"worker{index if name is None else name}", index)


def join_traces(folder: Path, workers: int) -> Path:
    """Join the workers' part files to `trace.json`, one track each, and remove them."""
    target = folder / "trace.json"
    with target.open("w") as joined:
        joined.write("[\n")
        for index in range(workers):
            part = folder / f"trace.{index}.part"
            with part.open() as lines:
                for line in lines:
                    event = line.strip().rstrip(",")
                    if event.startswith("{"):
                        joined.write((",\n" if joined.tell() > 2 else "") + event)
            part.unlink()
        joined.write("\n]\n")
    return target
