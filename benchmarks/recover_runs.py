"""Cases in processes of their own, watched from outside: none may hang, or leave anything behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from benchmarks import shown
from benchmarks.faults import in_children
from benchmarks.launched import ROOT, run, start
from benchmarks.recover_cases import MODELS, NAMES, PLANS, RECORDING, model_of
from benchmarks.recovering import Case, memory, written

CASE = "EVERFRAME_CASE"
"""The environment variable by which all processes of a case are known."""
LIBRARIES = ("ray", "torchinductor_")
"""Folders for temporary files that libraries keep."""
AGAIN = {model: tuple(one for one in said if one.startswith("model.")) for model, said in RECORDING.items()}
"""What a run over recorded inputs says of its model."""
LIMIT_S, GONE_S = 420.0, 20.0
"""A case that takes longer hangs; and how long its processes may take to be gone."""


def members(token: str) -> Iterator[int]:
    """Processes of a case that are there."""
    wanted = f"{CASE}={token}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                wanted in (path / "environ").read_bytes().split(b"\0")
                and "(zombie)" not in (path / "status").read_text()
            ):
                yield int(path.name)


def left_behind(token: str) -> list[str]:
    """Processes of a case that do not go; they are ended here."""
    end = time.monotonic() + GONE_S
    while (there := list(members(token))) and time.monotonic() < end:
        time.sleep(0.2)
    found = []
    for one in there:
        with suppress(OSError):
            found.append(Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
            os.kill(one, signal.SIGKILL)
    return found


class Recorded:
    """Undisturbed runs whose inputs were recorded, and undisturbed runs over recorded inputs."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cache  # noqa: B019  there is one
    def of(self, model: str, chunks: int) -> Path:
        """A folder with `inputs.jsonl`, `video.mp4` and `report.json` of a model's stream."""
        made = self.folder / f"{model}-{chunks}"
        run(
            "sequential", 1, made, f"model={NAMES[model]}", *MODELS[model], *RECORDING[model],
            f"stream.chunks={chunks}", f"sink.inputs={made}/inputs.jsonl", "device=cpu", "sink.trace=none",
        )  # fmt: skip
        return made

    @cache  # noqa: B019  likewise
    def undisturbed(self, model: str, chunks: int, degree: str = "") -> Path:
        """What is to come of the recorded inputs: of passes that several processes share, by as many undisturbed, since
        they make other bits."""
        made = self.of(model, chunks)
        if not degree:
            return made
        folder = self.folder / f"{model}-{chunks}-shared"
        plan = next(settings for settings in PLANS.values() if degree in settings)
        process = start(
            "local", 4, folder, f"model={NAMES[model]}", *MODELS[model], *AGAIN[model], *plan,
            f"source.inputs={made}/inputs.jsonl", f"stream.chunks={chunks}", "device=cpu", "sink.trace=none",
        )  # fmt: skip
        _, err = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise SystemExit(f"{model} by {degree} failed:\n{err[-3000:]}")
        return folder

    def replayed(self, folder: Path, inputs: Path, case: Case, chunks: int, *more: str) -> Path:
        """An undisturbed run over recorded inputs of a case."""
        settings = [
            one for one in case.settings if not one.startswith(("plan", "launcher", "stream.save", "source.audio"))
        ]
        run(
            "sequential", 1, folder, f"model={case.model}", *settings, f"source.inputs={inputs}",
            f"stream.chunks={chunks}", "device=cpu", "sink.trace=none", *more,
        )  # fmt: skip
        return folder


def done(case: Case, folder: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run a case; returns what came of it, and what was left behind."""
    token, began = token_hex(8), time.monotonic()
    written(case, folder)
    (folder / "tmp").mkdir()
    given = in_children(folder / "hook", "benchmarks.fault_signal") | {
        "OMP_NUM_THREADS": "1", CASE: token, "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    given["PYTHONPATH"] = os.pathsep.join((given["PYTHONPATH"], str(ROOT)))
    with (folder / "log").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.recovering", str(folder)], cwd=ROOT, env=given, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            for one in members(token):
                with suppress(OSError):
                    os.kill(one, signal.SIGKILL)
            process.wait()
    result, said = folder / "result.json", (folder / "log").read_text().splitlines()[-1:]
    end = f"nothing came within {limit_s:g} s" if process.returncode < 0 else f"exit code {process.returncode}: {said}"
    found = {"losses": [], "streams": [], "generations": [], "end": end, "hangs": process.returncode < 0}
    if result.exists():
        found = json.loads(result.read_text()) | {"hangs": False}
    found["left"] = left_behind(token) + remains(folder)
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def remains(folder: Path) -> list[str]:
    """What a case has left in memory and among its files."""
    found = []
    for where in (memory(folder), folder / "tmp"):
        if where.exists():
            found += [str(p.relative_to(where.parent)) for p in where.iterdir() if not p.name.startswith(LIBRARIES)]
            shutil.rmtree(where, ignore_errors=True)
    out = folder / "out"
    odd = (".part", ".old", ".new", ".tmp", ".joining")
    found += [str(path.relative_to(out)) for path in out.rglob("*") if path.suffix in odd or ".part." in path.name]
    return found


def checked(case: Case, found: dict[str, Any], folder: Path, recorded: Recorded) -> dict[str, Any]:
    """What came of a case, against the undisturbed run; `good`: whether nothing is wrong."""
    wrong = [f"left behind: {found['left']}"] if found["left"] else []
    wrong += ["it hangs"] if found["hangs"] else []
    wrong += [f"ended: {found['end']}"] if found["end"] and not found["hangs"] else []
    one = found["streams"][0] if found["streams"] else {"error": None, "latents_sha256": None}
    if one["error"]:
        wrong.append(f"the stream ended: {one['error']['line']}")
    elif not wrong or one["latents_sha256"]:
        if case.drive:
            name = folder / "undisturbed"
            undisturbed = recorded.replayed(name, folder / "out" / "inputs.jsonl", case, one["chunks"])
        else:
            degree = next((one for one in case.settings if one.startswith("plan.sequence_parallel")), "")
            undisturbed = recorded.undisturbed(model_of(case), case.chunks, degree)
        alone = json.loads((undisturbed / "report.json").read_text())
        if one["latents_sha256"] != alone["latents_sha256"]:
            wrong.append(f"another hash after {one['chunks']} chunks of {alone['chunks']}")
        pictures = shown.compared(folder / "out" / "video.mp4", undisturbed / "video.mp4")
        found["video"] = pictures
        if not pictures["good"]:
            wrong.append(f"video: {pictures}")
    return found | {"wrong": wrong, "good": not wrong}


def with_inputs(case: Case, recorded: Recorded) -> Case:
    """A case, driven by what was recorded of an undisturbed run unless it is driven live."""
    if case.drive:
        return case
    inputs = recorded.of(model_of(case), case.chunks) / "inputs.jsonl"
    return replace(case, settings=(*case.settings, *AGAIN[model_of(case)], f"source.inputs={inputs}"))
