"""The process that works: `python -m benchmarks.gpu.child`, started by its parent alone."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.gpu.log import Log
from benchmarks.gpu.rows import Bench, run


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("half", "device", "folder"):
        parser.add_argument(name)
    parser.add_argument("until", type=float)
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args()
    log = Log(Path(a.folder) / "rows.jsonl")
    device = torch.device("cuda", 0) if a.device == "cuda" else torch.device(a.device)
    bench = Bench(device, a.small, Path(a.folder), log)
    rows = importlib.import_module(f"benchmarks.gpu.{a.half}").ROWS
    if not log.head():
        log.add(rows=[row.name for row in rows], machine=bench.told)
    run(rows, bench, a.until)


if __name__ == "__main__":
    main()
