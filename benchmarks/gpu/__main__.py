"""`python -m benchmarks.gpu correct|speed`: see `benchmarks/gpu/__init__.py` and docs/gpu.md."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu.log import BAD, Log, table
from benchmarks.gpu.parent import ROOM_S, Parent, command
from benchmarks.record import RESULTS, record

SECONDS = {"correct": 150.0, "speed": 300.0}
INNER = ("row", "at", "limit_s", "hung")
"""Keys of a row that are for the processes."""


class Cut(Exception):  # noqa: N818  what was asked for
    """This process was told to end."""


def _cut(number: int, frame: object) -> NoReturn:
    raise Cut


def unpacked(wheels: Path | None, folder: Path) -> list[str]:
    """Paths for wheels that were carried along; each is unpacked, since what is compiled cannot be read from inside."""
    found = sorted(wheels.glob("*.whl")) if wheels else []
    for wheel in found:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder / "wheels")
    return [str(folder / "wheels")] if found else []


def kept(half: str, log: Log, argv: list[str], folder: Path) -> Path:
    """Write the results as every measurement's, under the name of the device."""
    machine = log.head().get("machine", {})
    theme = f"gpu-{half}-{machine.get('device', 'unknown').lower().replace(' ', '_')}"
    rows = {name: {k: v for k, v in row.items() if k not in INNER} for name, row in log.rows().items()}
    return record(theme, " ".join(["python -m benchmarks.gpu", *argv]), machine, rows, folder)


def main(argv: list[str] | None = None) -> int:
    """Run one half; returns 1 if a row missed its bar or failed, 2 if none was tried."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU does, in minutes.")
    parser.add_argument("half", choices=SECONDS)
    parser.add_argument("--seconds", type=float, help="all the time there is; it ends itself before")
    parser.add_argument("--device", default="cuda", help="cuda (the first card), or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a rehearsal")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be used, such as xFormers'")
    parser.add_argument("--out", type=Path, help="a folder for everything; else results go to benchmarks/results")
    a = parser.parse_args(argv)
    begun = time.time()
    folder = a.out or Path("outputs") / "gpu" / f"{a.half}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "rows.jsonl")
    log.path.unlink(missing_ok=True)
    until = begun + (a.seconds or SECONDS[a.half]) - ROOM_S
    paths = [*unpacked(a.wheels, folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    parent = Parent(command(a.half, a.device, folder, until, a.small), log, folder / "messages.txt", until, environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _cut)
    try:
        parent.run()
    except Cut:
        print("cut short", flush=True)
    if not log.rows():
        print(parent.last(), file=sys.stderr)
        return 2
    print(f"\n{table(log)}")
    path = kept(a.half, log, argv, folder if a.out or a.small else RESULTS)
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    print(f"\n{time.time() - begun:.0f} s; {path}, {folder}", flush=True)
    return int(any(row["state"] in BAD for row in log.rows().values()))


if __name__ == "__main__":
    sys.exit(main())
