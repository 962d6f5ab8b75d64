"""Odd input of every kind: `python -m benchmarks.fuzz [CASES] [SEED]`, or one case again: `--case NUMBER [SEED]`.

10,000 command lines and files go through the commands' own entry points, in processes that try many each: settings
with wild values, misspelt keys, weights, pictures, sound, lines, tensors, states and cluster files that are cut or
flipped; and 1,500 control lines to a running pipeline. One case in a hundred is a process of its own. Bars: no
traceback, nothing takes longer than 10 s, no exit code lies (0: a report with chunks; 2: one line that says what to do,
and nothing written but the report of a stream that had begun), and nothing is left: no thread, no process, no file.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks import control
from benchmarks.fuzzed import Case, case, originals
from benchmarks.record import bar, record

CASES, SEED, CONTROL_LINES = 10_000, 0, 1_500
LIMIT_S, PROCESS_LIMIT_S = 10, 90
"""Longest time of a case, and of one that is a process and has to import everything first."""
ALONE = 100
"""One case in so many is a process of its own."""
BATCH, MEMORY = 250, 12 << 30
LONGEST = 1000
"""Characters of a line that is still read."""


TRACEBACK, HANG, LIE, LEFT = "tracebacks and crashes", "hangs", "exit codes that lie", "leftovers"
SORTS = (TRACEBACK, HANG, LIE, LEFT)


class Hangs(BaseException):
    """A case took longer than it may; no handler of the product's takes it for an error of its own."""


def tried(made: Case, folder: Path, alone: bool) -> tuple[int | str, str]:
    """(exit code, or what came instead; standard error) of a case."""
    arguments = [*made.arguments, f"output_dir={folder / 'out'}"]
    if alone:
        return _process(made.command, arguments)
    out, err = io.StringIO(), io.StringIO()
    module = importlib.import_module(f"launch.{made.command}")
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = module.main(arguments)
    except Hangs:
        code = HANG
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    return code, err.getvalue()


def _process(command: str, arguments: list[str]) -> tuple[int | str, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launch", command, *arguments],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROCESS_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return HANG, ""
    except ValueError as error:  # no argument of a process holds a NUL
        return 2, f"error: {error}"
    return done.returncode, done.stderr


def fault(made: Case, folder: Path, code: int | str, err: str) -> tuple[str, str] | None:
    """(which of `SORTS`, what) is wrong with how a case ended; None: nothing."""
    out, lines = folder / "out", [line for line in err.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code == HANG:
        return HANG, f"longer than {LIMIT_S} s"
    if "Traceback" in err or code not in (0, 2):
        return TRACEBACK, f"exit {code}: {last}"
    if code == 2:
        if not last.startswith("error: ") or len(last) > LONGEST:
            return LIE, f"exit 2 without a line to read: {last[:200]}"
        if out.exists() and any(out.iterdir()) and not _told_in(out / "report.json"):
            return LEFT, f"exit 2 and {sorted(p.name for p in out.iterdir())[:4]}: {last[:200]}"
    elif made.command == "stream":
        report = out / "report.json"
        if not report.exists() or not json.loads(report.read_text()).get("chunks"):
            return LIE, "exit 0 without chunks"
    return None


def _told_in(report: Path) -> bool:
    """Whether a stream had begun, and its report says what ended it."""
    return report.exists() and "error" in json.loads(report.read_text())


def batch(first: int, count: int, seed: int, whole: Path) -> Iterator[dict[str, Any]]:
    """What came of some cases, one after the other in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # torch's compiler takes its time, and keeps threads
    torch.set_num_threads(1)

    def hang(*_: object) -> None:
        raise Hangs

    signal.signal(signal.SIGALRM, hang)
    threads: set[str] = set()
    for number in range(first, first + count):
        folder = Path(tempfile.mkdtemp(dir=whole))
        made = case(number, seed, folder)
        began = time.monotonic()
        code, err = tried(made, folder, number % ALONE == 0)
        wrong, took = fault(made, folder, code, err), time.monotonic() - began
        shutil.rmtree(folder, ignore_errors=True)
        threads = threads or _threads()
        if wrong is None and (left := _threads() - threads) and _stay(left):
            wrong = LEFT, f"threads {sorted(left)[:3]}"
        yield _told(number, made.kind, code, took, wrong, made.arguments)


def _told(
    number: int, kind: str, code: int | str, took: float, wrong: tuple[str, str] | None, arguments: tuple[str, ...]
) -> dict[str, Any]:
    sort, what = wrong or (None, None)
    return {
        "number": number, "kind": kind, "code": code, "seconds": round(took, 2), "sort": sort, "fault": what,
        "arguments": arguments,
    }  # fmt: skip


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def _stay(left: set[str]) -> bool:
    """Whether threads that a case began are still there after a while."""
    for _ in range(20):
        if not left & _threads():
            return False
        time.sleep(0.1)
    return True


def _run_batch(first: int, count: int, seed: int, whole: Path) -> list[dict[str, Any]]:
    """A batch in a process of its own; what kills it is the fault of the case that it was at."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        numbers = map(str, (first + len(found), count - len(found), seed))
        command = [sys.executable, "-m", "benchmarks.fuzz", "--batch", *numbers, str(whole)]
        # What libraries print themselves stands between the lines.
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(found) < count:
            died = TRACEBACK, f"the process died: {done.stderr[-200:]}"
            found.append(_told(first + len(found), "?", done.returncode, 0.0, died, ()))
    return found


def measure(cases: int, seed: int, folder: Path) -> dict[str, Any]:
    """Bars of so many cases."""
    originals(folder / "originals")
    starts = range(0, cases, BATCH)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_run_batch, first, min(BATCH, cases - first), seed, folder) for first in starts]
        found = [one for job in as_completed(jobs) for one in _shown(job.result())]
    wrong = [one for one in found if one["fault"]]
    left = [p.name for p in folder.iterdir() if p.name != "originals"]
    (folder / "control").mkdir()
    orders = control.measure(folder / "control", CONTROL_LINES)
    told = [v["passed"] for k, v in orders.items() if isinstance(v, dict) and "memory" not in k]
    longest = max(one["seconds"] for one in found if one["number"] % ALONE)
    return {
        "cases": dict(Counter(one["kind"] for one in found)) | {"control lines": CONTROL_LINES},
        "exit codes": dict(Counter(str(one["code"]) for one in found if one["code"] in (0, 2))),
        **{sort: _bar([one for one in wrong if one["sort"] == sort]) for sort in SORTS},
        "longest case": bar(f"{longest:.1f} s", f"under {LIMIT_S} s", longest < LIMIT_S),
        "files left": bar(len(left), "0", not left),
        "control lines as they should be": bar(all(told), "benchmarks.control", all(told)),
    }


def _shown(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came of a batch; its faults are printed."""
    for one in found:
        if one["fault"]:
            typed = " ".join(map(str, one["arguments"]))[:300]
            print(f"  {one['number']} {one['kind']}: {one['fault'][:300]}\n      {typed!r}", flush=True)
    return found


def _bar(wrong: list[dict[str, Any]]) -> dict[str, Any]:
    return bar(f"{len(wrong)}" + (f" (cases {[w['number'] for w in wrong[:8]]})" if wrong else ""), "0", not wrong)


def main(cases: int = CASES, seed: int = SEED) -> bool:
    """Measure, record, and say whether all bars are met."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        measured = measure(cases, seed, Path(folder))
    record("fuzz", "python -m benchmarks.fuzz", {"cases": cases, "seed": seed}, measured)
    return all(value["passed"] for value in measured.values() if isinstance(value, dict) and "passed" in value)


def again(number: int, seed: int = SEED) -> None:
    """Run one case and print what comes of it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        originals(Path(folder) / "originals")
        for one in batch(number, 1, seed, Path(folder)):
            print(json.dumps(one, indent=2, default=str))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--batch"]:
        for one in batch(*map(int, sys.argv[2:5]), Path(sys.argv[5])):
            print(json.dumps(one, default=str), flush=True)
        sys.exit(0)
    if sys.argv[1:2] == ["--case"]:
        sys.exit(again(*map(int, sys.argv[2:])))
    sys.exit(not main(*map(int, sys.argv[1:])))
