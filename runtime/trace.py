"""Where the time goes: spans of work, and statistics of bounded size.

A worker keeps its latest spans in memory (`Ring`) and hands them over with its report; `sink.trace=all` writes every
span to a file instead (`PartFile`). `trace.json` joins them, one track per worker, in the Trace Event format that
Perfetto and chrome://tracing open.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conf import disk
from conf.errors import UserError

SAMPLES = 1000
"""Samples behind every percentile: the latest this many, so that memory does not grow with the stream."""
RECENT_S, RECENT_SPANS = 600.0, 1 << 15
"""A ring holds the spans of the last ten minutes, and at most so many (0.9 MB)."""
TOGETHER = 64
"""Spans written to a part file at once: code that runs only now and then is slow each time."""


class Samples:
    """Recent durations, the sum and the longest of all. Takes the same memory from the first one on."""

    def __init__(self):
        self._ring = array("d", bytes(8 * SAMPLES))
        self.total, self.longest, self.count = 0.0, 0.0, 0

    def add(self, value: float) -> None:
        self.longest = max(self.longest, value)
        self._ring[self.count % SAMPLES] = value
        self.total += value
        self.count += 1

    @property
    def last(self) -> float | None:
        """The latest sample."""
        return self._ring[(self.count - 1) % SAMPLES] if self.count else None

    @property
    def mean(self) -> float | None:
        """Of all samples; None without any."""
        return self.total / self.count if self.count else None

    def percentile(self, p: float) -> float | None:
        """The nearest-rank percentile of the recent samples; None without samples."""
        ordered = sorted(self._ring[: self.count])
        return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] if ordered else None

    def summary(self) -> dict[str, float | None]:
        return {"p50": self.percentile(50), "p99": self.percentile(99)}


class Span(NamedTuple):
    """Work of a stage for a chunk (-1: for none); times in seconds."""

    stage: str
    chunk: int
    start: float
    duration: float

    def event(self, track: int) -> str:
        """As Trace Event JSON, whose times are microseconds."""
        return (
            f'{{"name": "{self.stage}", "ph": "X", "pid": 0, "tid": {track}, "ts": {round(self.start * 1e6)}, '
            f'"dur": {round(self.duration * 1e6)}, "args": {{"chunk": {self.chunk}}}}}'
        )


def title(worker: str, track: int) -> str:
    """The event that names a track."""
    return json.dumps({"name": "thread_name", "ph": "M", "pid": 0, "tid": track, "args": {"name": worker}})


class Ring:
    """The latest spans: those that ended in the last `RECENT_S` seconds, and `RECENT_SPANS` of them at most."""

    KIND = np.dtype([("stage", "<u4"), ("chunk", "<i8"), ("start", "<f8"), ("duration", "<f8")])

    def __init__(self):
        self._spans = np.empty(RECENT_SPANS, self.KIND)
        self._spans.fill(0)  # its memory is taken now, not bit by bit
        self._stages: dict[str, int] = {}
        self._count = 0

    def add(self, span: Span) -> None:
        number = self._stages.setdefault(span.stage, len(self._stages))
        self._spans[self._count % RECENT_SPANS] = (number, *span[1:])
        self._count += 1

    def pack(self, now: float) -> dict[str, Any]:
        """The spans as JSON can hold them: stage names, and zlib-compressed records of `KIND` in base64."""
        oldest = max(0, self._count - RECENT_SPANS)
        kept = self._spans[np.arange(oldest, self._count) % RECENT_SPANS]
        recent = kept[kept["start"] + kept["duration"] >= now - RECENT_S]
        return {"stages": [*self._stages], "spans": base64.b64encode(zlib.compress(recent.tobytes())).decode()}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Iterator[Span]:
        """The spans that `pack` gave away, oldest first."""
        content = zlib.decompress(base64.b64decode(packed["spans"]))
        for stage, chunk, start, duration in np.frombuffer(content, cls.KIND).tolist():
            yield Span(packed["stages"][stage], chunk, start, duration)


class PartFile:
    """Every span, to a file that Perfetto opens also where its end is missing.

    Raises:
        UserError: the file cannot be made.
    """

    def __init__(self, path: Path, worker: str, track: int):
        self.path, self.track = path, track
        self.refused: UserError | None = None
        """Why nothing is written any more: a disk that refuses spans does not end the streams they are of."""
        self._waiting: list[str] = []
        with self._writing():
            self._file = disk.prepare(path).open("w")
        self._file.write("[\n" + title(worker, track))

    def add(self, span: Span) -> None:
        if self.refused is None:
            self._waiting.append(",\n" + span.event(self.track))
            if len(self._waiting) == TOGETHER:
                self.flush()

    def flush(self) -> None:
        """Write what waits, unless the disk refused before."""
        waiting, self._waiting = "".join(self._waiting), []
        if self.refused or self._file.closed:
            return
        try:
            with self._writing():
                self._file.write(waiting)
                self._file.flush()
                self.path.stat()  # an open file can be written whose folder is gone
        except UserError as error:
            self.refused = error

    def close(self) -> None:
        """Write the rest, and the end that makes it JSON."""
        self._waiting.append("\n]\n")
        self.flush()
        with contextlib.suppress(OSError):
            self._file.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return disk.writing(f"output_dir={self.path.parent}", self.path.name)


class Trace:
    """Statistics of one worker's stages, and its spans. Threads may share it.

    As a context that an exception leaves, it writes its ring to the part file, which Perfetto opens as it is: whoever
    looks for the cause has it.

    Args:
        worker, track: the track's name and number.
        keep: which spans: `none`, the `recent` ones (in memory), or `all` (in the part file).
        part: the part file; None: spans are never written by this process.
        clock: seconds, monotonic, and the same in every process of a host.

    Raises:
        UserError: the part file cannot be made.
    """

    def __init__(
        self,
        worker: str = "worker0",
        track: int = 0,
        keep: str = "none",
        part: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.stages: dict[str, Samples] = defaultdict(Samples)
        self.worker, self.track, self.clock, self.opened = worker, track, clock, clock()
        self._lock, self._part = threading.Lock(), part
        self._kept: Ring | PartFile | None = None
        if keep == "recent":
            self._kept = Ring()
        elif keep == "all" and part:
            self._kept = PartFile(part, worker, track)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is not None:
            self._leave_behind()
        self.close()

    @contextmanager
    def span(self, stage: str, chunk: int) -> Iterator[None]:
        """Time the enclosed work as `stage` of `chunk`."""
        start = self.clock()
        yield
        self.add(stage, chunk, start, self.clock() - start)

    def add(self, stage: str, chunk: int, start: float, duration: float) -> None:
        """A span that was timed elsewhere; times on this trace's clock."""
        with self._lock:
            self.stages[stage].add(duration)
            if self._kept:
                self._kept.add(Span(stage, chunk, start, duration))

    def flush(self) -> None:
        """Write what waits for the part file."""
        if isinstance(self._kept, PartFile):
            with self._lock:
                self._kept.flush()

    def close(self) -> None:
        """Let go of the part file; spans in memory stay until they are packed."""
        if isinstance(self._kept, PartFile):
            with self._lock:
                self._kept.close()

    def pack(self) -> dict[str, Any] | None:
        """What `join_traces` takes, as JSON can hold it, 2 MB at most; None where no spans are kept."""
        track = {"worker": self.worker, "track": self.track}
        with self._lock:
            if isinstance(self._kept, Ring):
                return track | self._kept.pack(self.clock())
            if self._kept:
                refused = self._kept.refused
                return track | {
                    "part": self._kept.path.name,
                    "refused": refused and [refused.value, refused.rule, refused.remedy],
                }
        return None

    def busy(self, wall_s: float) -> dict[str, dict]:
        """Per stage: worker, share of `wall_s` spent in it, and recent durations."""
        with self._lock:
            stages = dict(self.stages)
        return {
            name: {"worker": self.worker, "busy_fraction": s.total / wall_s if wall_s else None, "time_s": s.summary()}
            for name, s in stages.items()
        }

    def _leave_behind(self) -> None:
        """Write the ring to the part file, as far as the disk lets it: the exception under way matters more."""
        packed = self.pack()
        if not self._part or not packed or "spans" not in packed:
            return
        with contextlib.suppress(UserError):
            file = PartFile(self._part, self.worker, self.track)
            for span in Ring.unpack(packed):
                file.add(span)
            file.close()


def part_name(track: int) -> str:
    """The name of a track's part file in the output folder."""
    return f"trace.{track}.part"


def worker_trace(folder: Path, index: int, name: str | None = None, keep: str = "recent") -> Trace:
    """The trace of process `index` of several.

    Args:
        folder: where its part file goes, `trace.INDEX.part`; one that an earlier run left there is removed.
        index: the number of its track.
        name: of its worker, if that has another number.
        keep: as `sink.trace`.
    """
    part = Path(folder) / part_name(index)
    disk.remove(part)
    return Trace(f"worker{index if name is None else name}", index, keep, part)
