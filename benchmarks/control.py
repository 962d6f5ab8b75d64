"""Control lines against a running pipeline: `python -m benchmarks.control [LINES]`.

10,000 generated lines go to two workers of `nano` with one stream under way: wrong types, unknown names, huge values,
broken JSON; one in fifty opens a stream of one chunk, and some stop, steer or wait for those just as they end. Bars:
the stream's latents are the oracle's, every bad line gets one warning and no good one does, and memory stays.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.constant import PORTRAIT, resident_bytes
from benchmarks.control_lines import MAIN, lines
from benchmarks.launched import run
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from launch.control import Control
from launch.running import start

LINES, SEED, GROWTH = 10_000, 0, 0.02
EARLY, LATE = (0.1, 0.3), (0.8, 1.0)
"""Shares of the lines between which memory is sampled; medians are compared, as banks of brief streams come and go."""
BASE = ("model=nano", "device=cpu", "sink.video=null", f"source.image={PORTRAIT}")


class Warnings(logging.Handler):
    """Counts what `launch.control` warns of."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.number += 1


def measure(folder: Path, number: int) -> dict:
    """Bars of a run with `number` lines."""
    written, orders = list(lines(number, SEED)), folder / "orders"
    orders.write_bytes(b"\n".join(line.text for line in written) + b"\n")
    heard, log = Warnings(), logging.getLogger("launch.control")
    log.addHandler(heard)
    log.propagate = False
    settings = (*BASE, "plan=timestep", "plan.workers=2", f"control={orders}", f"output_dir={folder / 'run'}")
    config = compose("stream", Config, list(settings))
    with start(config) as running:
        pipeline = running.pipeline
        main = pipeline.open(replace(config.stream, id=MAIN), config.source, config.sink)
        control, memory, wrong, began = Control(pipeline, config), [], [], time.monotonic()
        for at, (line, text) in enumerate(zip(written, control.lines, strict=True), 1):
            before = heard.number
            control.take(at, text)
            if heard.number - before != (not line.good):
                wrong.append(at)
            memory.append(resident_bytes())
        early, late = (statistics.median(memory[int(a * number) : int(b * number)]) for a, b in (EARLY, LATE))
        took, growth = time.monotonic() - began, late / early - 1
        under_way = not pipeline.ended(main)
        pipeline.stop(main)
        pipeline.close()
        result = pipeline.result(main)
        running.wait()
    chunks = f"stream.chunks={result['chunks']}"
    alone = run("sequential", 1, folder / "alone", *BASE, f"stream.id={MAIN}", chunks)["latents_sha256"]
    bad = sum(not line.good for line in written)
    return {
        "lines": number,
        "seconds": round(took, 1),
        "chunks of the stream under way": result["chunks"],
        "stream under way to the end, its latents the oracle's": bar(
            result["latents_sha256"][:16], alone[:16], under_way and result["latents_sha256"] == alone
        ),
        "one warning for every bad line": bar(f"{heard.number} for {bad}, not {wrong[:5]}", "none wrong", not wrong),
        "memory growth": bar(f"{growth:+.2%}", f"under {GROWTH:.0%}", growth < GROWTH),
    }


def main(number: int = LINES) -> bool:
    """Measure, record, and say whether all bars are met."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), number)
    record("control", "python -m benchmarks.control", {"lines": number, "seed": SEED, "overrides": BASE}, measured)
    return all(value["passed"] for value in measured.values() if isinstance(value, dict))


if __name__ == "__main__":
    sys.exit(not main(*map(int, sys.argv[1:])))
