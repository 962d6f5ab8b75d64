"""A device that breaks in the middle of a stream: the run must end, and say why.

`python -m benchmarks.gpu.fault` breaks it, in a process of its own, since after such a fault a process's device takes
no more work.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.log import Log
from benchmarks.gpu.rows import Bench, Row
from benchmarks.gpu.runs import PATIENCE_S, PLANS, config, streamed
from benchmarks.record import bar
from stages.denoise.denoiser import Denoiser

CHUNK = 2
"""Of the stream, in whose passes the device is given an index that is out of range."""
SAID = "fault:"
NAMED = "assert", "out of bounds"
"""What a GPU says of it, and what a processor says."""
LONGEST_S = PATIENCE_S + 30
"""The process ends itself after so long: it has to start, and whoever started it may be gone."""


def broken(bench: Bench) -> str:
    """What a run says whose passes break the device, and after how long."""
    step = Denoiser.step

    def breaks(self: Denoiser, stream: Any, number: int, chunk: int, x: Tensor, *rest: Any) -> Tensor | None:
        if chunk == CHUNK:
            torch.zeros(4, device=x.device).gather(0, torch.full((1,), 9, device=x.device))
        return step(self, stream, number, chunk, x, *rest)

    Denoiser.step = breaks
    begun = time.monotonic()
    try:
        streamed(config(bench, "nano", PLANS["timestep"], bench.folder))
    except Exception as error:  # whatever ends a run
        took = time.monotonic() - begun
        return f"{took:.1f} s: {' '.join(str(error).split())[:200]}"
    return "nothing was wrong"


def faulted(bench: Bench) -> dict[str, Any]:
    """An index out of range on the device ends a run of threads with a reason, and does not hang it."""
    command = [sys.executable, "-m", "benchmarks.gpu.fault", str(bench.device), str(bench.folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [line.removeprefix(SAID).strip() for line in done.stdout.splitlines() if line.startswith(SAID)]
    said = lines[-1] if lines else f"its process hung or died, with code {done.returncode}"
    return bar(said, "a reason that names it", any(word in said for word in NAMED))


ROWS = [Row("fault on the device", 12, faulted)]

if __name__ == "__main__":
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    name, folder = sys.argv[1:]
    work = Path(folder) / "fault"
    work.mkdir(exist_ok=True)
    print(SAID, broken(Bench(torch.device(name), True, work, Log(work / "rows.jsonl"))), flush=True)
    os._exit(0)  # what would be let go of in good order needs the device
