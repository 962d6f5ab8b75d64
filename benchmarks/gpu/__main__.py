"""`python -m benchmarks.gpu correct|speed`: see `benchmarks/gpu/__init__.py` and docs/gpu.md."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu.log import BAD, LEFT, Log, counts, table
from benchmarks.gpu.parent import ROOM_S, Parent, command
from benchmarks.record import RESULTS, record
from conf.errors import UserError

SECONDS = {"correct": 150.0, "speed": 300.0}
LEAST_S = 20.0
"""For the imports, the first row and the table."""
FINE, FAILED, REFUSED, INCOMPLETE = 0, 1, 2, 3
"""Exit codes: all that can be here was tried and is fine, a row is not, none was tried, some were not."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
INNER = ("row", "at", "limit_s", "hung")
"""Keys of a row that are for the processes."""


class Cut(Exception):  # noqa: N818  what was asked for
    """This process was told to end."""


def _cut(number: int, frame: object) -> NoReturn:
    for each in SIGNALS:  # another would only disturb the end
        signal.signal(each, signal.SIG_IGN)
    raise Cut


def seconds(text: str) -> float:
    """The time that is given.

    Raises:
        UserError: no number, not finite, or too little for any row.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not LEAST_S <= found < math.inf:
        what = "too little time" if found < LEAST_S else "not a time"
        raise UserError(f"--seconds {text}", what, f"give at least {LEAST_S:g}")
    return found


def emptied(folder: Path) -> tuple[Path, Path]:
    """The two files of a run, for rows and messages, made anew.

    Raises:
        UserError: the folder cannot be written.
    """
    files = folder / "rows.jsonl", folder / "messages.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes(b"")
    except OSError as error:
        rule = f"cannot be written ({error.strerror})"
        raise UserError(str(folder), rule, "give another folder with --out") from error
    return files


def unpacked(wheels: Path | None, folder: Path) -> list[str]:
    """Paths for wheels that were carried along; each is unpacked, since what is compiled cannot be read from inside.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if wheels is None:
        return []
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise UserError(f"--wheels {wheels}", "holds no wheels", "give a folder with *.whl files")
    for wheel in found:
        try:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"--wheels {wheel}", f"cannot be unpacked ({error})", "download it again") from error
    return [str(folder)]


def kept(half: str, log: Log, argv: list[str], folder: Path) -> Path:
    """Write the results as every measurement's, under the name of the device."""
    machine = log.head().get("machine", {})
    theme = f"gpu-{half}-{machine.get('device', 'unknown').lower().replace(' ', '_')}"
    rows = {name: {k: v for k, v in row.items() if k not in INNER} for name, row in log.rows().items()}
    return record(theme, " ".join(["python -m benchmarks.gpu", *argv]), machine, rows, folder)


def main(argv: list[str] | None = None) -> int:
    """Run one half; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU does, in minutes.")
    parser.add_argument("half", choices=SECONDS)
    told = f"all the time there is, {LEAST_S:g} or more; it ends itself before"
    parser.add_argument("--seconds", type=seconds, help=told)
    kinds = "cuda: the first card; auto: the processor where there is none"
    parser.add_argument("--device", default="cuda", choices=("auto", "cpu", "cuda"), help=kinds)
    parser.add_argument("--small", action="store_true", help="tiny sizes: a rehearsal; results go to outputs/gpu")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be used, such as xFormers'")
    parser.add_argument("--out", type=Path, help="a folder for everything; else results go to benchmarks/results")
    before = {number: signal.signal(number, _cut) for number in SIGNALS}
    try:
        return measured(parser.parse_args(argv), argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except Cut:
        return INCOMPLETE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measured(a: argparse.Namespace, argv: list[str]) -> int:
    """Start what works, show and keep what it found; returns the exit code.

    Raises:
        UserError: a folder that was given is of no use.
    """
    begun = time.time()
    folder = a.out or Path("outputs") / "gpu" / f"{a.half}-{datetime.now():%Y%m%d-%H%M%S}"
    rows, messages = emptied(folder)
    log = Log(rows)
    until = begun + (a.seconds or SECONDS[a.half]) - ROOM_S
    ended = False
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=folder) as carried:
        paths = [*unpacked(a.wheels, Path(carried)), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        parent = Parent(command(a.half, a.device, folder, until, a.small), log, messages, until, environ)
        try:
            parent.run()
        except Cut:
            ended = True
            print("cut short", flush=True)
    if not log.rows():
        ended = ended or time.time() >= until
        print("no row was begun in the time there was" if ended else parent.last(), file=sys.stderr)
        return INCOMPLETE if ended else REFUSED
    print(f"\n{table(log)}\n\n{counts(log)}")
    path = kept(a.half, log, argv, folder if a.out or a.small else RESULTS)
    print(f"{time.time() - begun:.0f} s; {path}, {folder}", flush=True)
    states = {row["state"] for row in log.rows().values()}
    return FAILED if states & BAD else INCOMPLETE if states & LEFT else FINE


if __name__ == "__main__":
    sys.exit(main())
