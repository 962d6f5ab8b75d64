"""The process that works: `python -m benchmarks.gpu.child`, started by its parent alone."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import signal
import sys
from pathlib import Path

import devices
from benchmarks.gpu.log import Log
from benchmarks.gpu.rows import Bench, run
from conf.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("half", "device", "folder"):
        parser.add_argument(name)
    parser.add_argument("until", type=float)
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)  # where every thread is, before its parent ends it
    log = Log(Path(a.folder) / "rows.jsonl")
    try:
        device = devices.choose(a.device, 0)
    except UserError as error:
        sys.exit(f"error: {error}")
    bench = Bench(device, a.small, Path(a.folder), log)
    rows = importlib.import_module(f"benchmarks.gpu.{a.half}").ROWS
    # What was imported stays: the collector, which runs after every row, need not look at it.
    gc.freeze()
    if not log.head():
        log.add(rows=[row.name for row in rows], machine=bench.told)
    run(rows, bench, a.until)


if __name__ == "__main__":
    main()
