"""Does a stream cost the same after 2,000 chunks as after 100? `python -m benchmarks.constant`.

Streams `nano` through the main job's own engine (video, latents file and trace included). Bars: resident memory
at chunk 2,000 within 2 % of chunk 100; median time of chunks 2,000 to 2,200 within 3 % of chunks 100 to 300.
The two times are taken together: a second, young stream takes turns with the old one, chunk by chunk, so that
a machine that slows down slows both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from runtime.run import SequentialRun

PAGE = 4096
PORTRAIT = Path(__file__).parent.parent / "assets" / "portrait.png"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def engine(folder: Path) -> SequentialRun:
    """The main job's engine for `nano`, writing everything it can."""
    overrides = [
        "model=nano", "stream.chunks=1000000", f"sink.video={folder}/video.mp4", f"output_dir={folder}",
        f"sink.latents={folder}/latents.safetensors", f"source.image={PORTRAIT}", "device=cpu",
    ]  # fmt: skip
    folder.mkdir()
    return SequentialRun(compose("stream", Config, overrides), threading.Event())


def main(chunks: int = 2000, young: int = 100, pairs: int = 200) -> bool:
    memory = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("old", "young")]
        old, new = (iter(engine(folder).stream(0, folder)) for folder in folders)
        for chunk in range(1, chunks + 1):
            next(old)
            if chunk in (young, chunks):
                memory[chunk] = resident_bytes()
        for _ in range(young):
            next(new)
        times: dict[str, list[float]] = {"old": [], "new": []}
        for i in range(pairs):
            for name, stream in (("old", old), ("new", new))[:: 1 if i % 2 else -1]:
                start = time.perf_counter()
                next(stream)
                times[name].append(time.perf_counter() - start)
        old.close()
        new.close()
    growth = memory[chunks] / memory[young] - 1
    late, early = statistics.median(times["old"]), statistics.median(times["new"])
    drift = late / early - 1
    measured = {
        f"resident memory at chunk {chunks} over chunk {young}": bar(
            f"{growth:+.2%}", "within 2 %", abs(growth) <= 0.02
        ),
        f"time per chunk, from {chunks} on over from {young} on": bar(
            f"{drift:+.2%}", "within 3 %", abs(drift) <= 0.03
        ),
        "resident_bytes": memory,
        "median_chunk_s": {"old": late, "young": early},
    }
    configuration = {"model": "nano", "chunks": chunks, "pairs": pairs, "threads": 1}
    record("constant", "python -m benchmarks.constant", configuration, measured)
    return abs(growth) <= 0.02 and abs(drift) <= 0.03


if __name__ == "__main__":
    sys.exit(not main())
