"""Whether anything grows with streams that come and go: `python -m benchmarks.growth [STREAMS]`.

Streams of one chunk are opened and ended one after the other on one pipeline, its workers threads of this process.
Counted are, after every hundred, keys of the store, threads, open files and resident memory; and seconds per stream.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.constant import resident_bytes
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from launch.running import start

STREAMS, EVERY = 2000, 100
OVERRIDES = ["model=nano", "plan=timestep", "plan.steps=[2,2]", "plan.workers=3", "device=cpu", "launcher=local"]


def counted(board: Any) -> dict[str, int]:
    """What there is now. Threads of the last stream may be about to end: the fewest within a moment count."""
    gc.collect()
    threads = threading.active_count()
    for _ in range(20):
        time.sleep(0.02)
        threads = min(threads, threading.active_count())
    return {
        "keys": board.keys(),
        "threads": threads,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "memory": resident_bytes(),
    }


def measure(streams: int, folder: Path) -> tuple[list[dict[str, int]], list[float]]:
    """Counts after every hundred streams, and seconds of each stream."""
    config = compose("stream", Config, [*OVERRIDES, f"output_dir={folder}"])
    counts, seconds = [], []
    with start(config) as running:
        for number in range(streams):
            begun = time.perf_counter()
            sink = replace(config.sink, video=str(folder / f"{number % 4}.mp4"))
            stream = running.pipeline.open(replace(config.stream, id=f"s{number}", chunks=1), config.source, sink)
            running.pipeline.result(stream, 60)
            seconds.append(time.perf_counter() - begun)
            if (number + 1) % EVERY == 0:
                counts.append(counted(running.board))
        running.close()
        running.wait()
    return counts, seconds


def main() -> None:
    """Measure, record, print the bars."""
    streams = int(sys.argv[1]) if sys.argv[1:] else STREAMS
    with tempfile.TemporaryDirectory() as folder:
        counts, seconds = measure(streams, Path(folder))
    first, last = counts[0], counts[-1]
    measured: dict[str, Any] = {
        name: bar(f"{first[name]} after {EVERY}, {last[name]} after {streams}", "equal", last[name] == first[name])
        for name in ("keys", "threads", "files")
    }
    growth = last["memory"] / first["memory"] - 1
    measured["memory"] = bar(f"{growth:+.2%}", "within 2 %", growth <= 0.02)
    part = min(200, streams // 4)
    early, late = statistics.median(seconds[EVERY : EVERY + part]), statistics.median(seconds[-part:])
    change = late / early - 1
    measured["seconds per stream"] = bar(f"{change:+.1%} ({early * 1e3:.0f} ms)", "within 10 %", abs(change) <= 0.1)
    measured["counts"] = counts
    record("growth", f"python -m benchmarks.growth {streams}", {"overrides": OVERRIDES, "streams": streams}, measured)


if __name__ == "__main__":
    main()
