"""Rows: what is tried, how long it may take, and the loop that tries one after the other."""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import devices
from benchmarks.gpu.log import ABSENT, BEGUN, ERROR, LATE, MEASURED, MISS, OK, Log, shown
from benchmarks.stage import Machine
from conf.errors import UserError

LEAST_LIMIT_S, LIMIT = 16.0, 4.0
"""A row is ended after so long, and after so many times what it was thought to take, whichever is more."""
HUNG = 2
"""Rows of a kind that were ended so, after which others of that kind come last: they would take all the time."""
POISONED = 3
"""Exit code of a process whose device takes no more work."""


class Absent(Exception):  # noqa: N818  a result, not an error
    """A row cannot be here; says why."""


class Bench:
    """What rows are given.

    Args:
        device: under test.
        small: whether sizes are those of a rehearsal.
        folder: for files.
        log: where all results so far are.
    """

    def __init__(self, device: torch.device, small: bool, folder: Path, log: Log):
        self.device, self.small, self.folder, self.log = device, small, folder, log

    @cached_property
    def machine(self) -> Machine:
        """The device's rates."""
        return Machine(self.device)

    @property
    def told(self) -> dict[str, Any]:
        """What can change a number or a bit."""
        device = devices.of(self.device)
        capability = device.capability()
        return {
            "device": device.title(),
            "cards": devices.count() or None,
            "capability": capability and ".".join(map(str, capability)),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": devices.nccl_version(),
        }


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the row, one of its kind.
        seconds: what it takes on a card, about: with less time left it is not begun.
        work: returns what `record.bar` does, more keys added, or a dictionary with `value` alone.
    """

    name: str
    seconds: float
    work: Callable[[Bench], dict[str, Any]]

    @property
    def kind(self) -> str:
        """The first word of its name."""
        return self.name.partition(" ")[0]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative: the norm of the difference over that of what was expected; infinite where either is not finite."""
    found, expected = (t.detach().to("cpu", torch.float64) for t in (found, expected))
    off = ((found - expected).norm() / expected.norm()).item()
    return off if off == off else float("inf")


def run(rows: Sequence[Row], bench: Bench, until: float) -> None:
    """Try all rows that have no line yet, and that there is time for.

    Args:
        until: a moment of `time.time`.

    Raises:
        SystemExit: the device takes no more work; another process is to go on.
    """
    log = bench.log
    done = {line["row"]: line for line in log.lines() if "row" in line}
    hung = Counter(row.kind for row in rows if done.get(row.name, {}).get("hung"))
    for row in sorted(rows, key=lambda row: hung[row.kind] >= HUNG):
        if row.name in done:
            continue
        if time.time() + (0 if bench.small else row.seconds) > until:
            log.add(row=row.name, state=LATE)
            continue
        # A rehearsal is on any machine: nobody knows how long a row takes there.
        limit_s = until - time.time() if bench.small else max(LEAST_LIMIT_S, LIMIT * row.seconds)
        log.add(row=row.name, state=BEGUN, at=time.time(), limit_s=limit_s)
        line = {"row": row.name, **_tried(row, bench)}
        log.add(**line)
        print(shown(line), flush=True)
        _settle(bench)


def _tried(row: Row, bench: Bench) -> dict[str, Any]:
    # Plans that ran as threads have set it to one, and results on the processor are references.
    torch.set_num_threads(1 if bench.small else len(os.sched_getaffinity(0)))
    begun = time.perf_counter()
    try:
        found = row.work(bench)
        passed = found.pop("passed", None)
        state = MEASURED if passed is None else OK if passed else MISS
    except Absent as why:
        state, found = ABSENT, {"value": str(why)}
    except Exception as error:  # whatever a row raises is its result
        print(f"{row.name}: ", file=sys.stderr, end="", flush=True)
        sys.excepthook(type(error), error, error.__traceback__)
        text = str(error).strip() or "no message"
        state, found = ERROR, {"value": f"{type(error).__name__}: {text.splitlines()[0][:300]}"}
    return {"state": state, "seconds": round(time.perf_counter() - begun, 2), **found}


def _settle(bench: Bench) -> None:
    """Give back a row's memory, and see whether the device still works: after some faults it never does again."""
    gc.collect()
    try:
        devices.of(bench.device).synchronize()
        devices.of(bench.device).trim()
    except RuntimeError as error:
        print(f"the device takes no more work: {error}", file=sys.stderr, flush=True)
        os._exit(POISONED)


def needs(holds: bool, why: str) -> None:
    """Say that a row cannot be here unless `holds`."""
    if not holds:
        raise Absent(why)


def allowed(check: Callable[[], object]) -> None:
    """Say that a row cannot be here where a check of the configuration refuses it."""
    try:
        check()
    except UserError as error:
        raise Absent(str(error)) from error
