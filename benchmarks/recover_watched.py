"""A session of a gateway whose workers are lost, as its viewer sees it."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import psutil

from benchmarks import serving
from benchmarks.fault_signal import RAISE
from benchmarks.faults import in_children
from benchmarks.recover_cases import MODELS, NAMES, WATCHED
from benchmarks.recover_runs import CASE, left_behind
from benchmarks.shown import uneven
from benchmarks.visitors import Person
from serve import client

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": RAISE}
BETWEEN_S, SETTLED_S, RESUMED_S = 10.0, 5.0, 60.0
PLAN = ("plan=timestep", "plan.workers=3", "launcher.silent_s=2")


class Viewer(Person):
    """Somebody who keeps all that is sent, and looks on until told to leave.

    Args:
        file: for the media.
        wanted: with the session.

    Attributes:
        told: (moment, what was said) of every chunk.
        seen: (moment, which) of every notice.
    """

    def __init__(self, url: str, seed: int, file: Path, **wanted: Any):
        super().__init__(url, seed, 0.0, **wanted)
        self.file, self.over = file, threading.Event()
        self.told: list[tuple[float, client.Chunk]] = []
        self.seen: list[tuple[float, str]] = []

    def _watch(self, session: client.Session) -> None:
        import numpy as np

        random, talks, stopped = np.random.default_rng(self.seed), time.monotonic() + 1.0, False
        with self.file.open("wb") as file:
            for part in session:
                file.write(part.data)
                now = time.monotonic()
                if part.first:
                    self.told.append((now, part.chunk))
                for notice in list(session.notices)[len(self.seen) :]:
                    self.seen.append((now, str(notice.get("kind", notice["type"]))))
                if now > talks and not stopped:
                    talks = now + self.talk(session, random)
                if self.over.is_set() and not stopped:
                    stopped = True
                    session.stop()


def workers(server: serving.Server) -> list[int]:
    """Processes that are workers of the model."""
    found = []
    for pid in server.workers:
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"launch.worker" in line or line.startswith(b"ray::WorkerActor"):
                found.append(pid)
    return found


def members(server: serving.Server, spares: int) -> list[int]:
    """Those of them that are members of the plan: spares are the youngest, since one that takes a place is followed by
    another at once."""
    found = {}
    for pid in workers(server):
        with suppress(psutil.Error):
            found[pid] = psutil.Process(pid).create_time()
    there = sorted(found, key=found.__getitem__)
    return there[: len(there) - spares]


def _resumed(viewer: Viewer, chunks: int, began: float) -> tuple[float, float] | None:
    """Seconds until the notice that it stands still, and until the first chunk after the next that it goes on."""
    end = time.monotonic() + RESUMED_S
    while time.monotonic() < end and viewer.is_alive():
        since = [(at, kind) for at, kind in list(viewer.seen) if at >= began]
        frozen = next((at for at, kind in since if kind == "frozen"), None)
        resumed = next((at for at, kind in since if kind == "resumed"), None)
        if frozen and resumed:
            shown = next((at for at, _ in list(viewer.told) if at > resumed), None)
            if shown:
                return round(frozen - began, 3), round(shown - began, 3)
        time.sleep(0.02)
    return None


def watched(launcher: str, index: int, folder: Path, quick: bool = False) -> dict[str, Any]:
    """A session, its losses, and what came of it."""
    model, spares, happens = WATCHED[index]
    overrides = [
        f"model={NAMES[model]}", *MODELS[model], *PLAN, f"launcher={launcher}", "launcher.recover=exact",
        f"launcher.spares={spares}", "serve.sessions_per_caller=8", "serve.posts_per_minute=1000", "device=cpu",
    ]  # fmt: skip
    token, draw = f"watched{os.getpid()}{launcher}{index}", random.Random(index)
    cuts = Path("/dev/shm") / f"recover-{token}"
    cuts.mkdir(mode=0o700)
    before, found = dict(os.environ), []
    os.environ.update(in_children(folder / "hook", "benchmarks.fault_signal") | {CASE: token})
    try:
        with serving.Server(folder, *overrides, f"launcher.cuts={cuts}") as server:
            viewer = Viewer(server.url, 7, folder / "watched.mp4")
            viewer.start()
            viewer.opened.wait(60)
            for how in happens[: 2 if quick else None]:
                time.sleep(BETWEEN_S)
                there = members(server, spares)
                began = time.monotonic()
                if not (viewer.is_alive() and there):
                    break
                os.kill(draw.choice(there), SIGNALS[how])
                times = _resumed(viewer, len(viewer.told), began)
                found.append({"loss": how, "told_s": times and times[0], "frozen_s": times and times[1]})
            time.sleep(SETTLED_S)
            viewer.over.set()
            viewer.join(60)
            emptied = server.emptied(30)
        reports = server.reports()
    finally:
        os.environ.clear()
        os.environ.update(before)
    left = left_behind(token) + [path.name for path in cuts.iterdir()]
    with suppress(OSError):
        cuts.rmdir()
    return _checked(viewer, server, reports, found, left, emptied, f"model={NAMES[model]}", *MODELS[model])


def _checked(
    viewer: Viewer, server: serving.Server, reports: dict, found: list, left: list[str], emptied: bool, *model: str
) -> dict[str, Any]:
    """What the viewer saw, against what was made."""
    wrong = [f"left behind: {left}"] if left else []
    wrong += [] if emptied else ["a session is left"]
    wrong += [f"refused: {viewer.refused}"] if viewer.refused else []
    wrong += [f"after {one['loss']} nothing more was seen" for one in found if one["frozen_s"] is None]
    numbers = [chunk.chunk for _, chunk in viewer.told]
    if numbers != list(range(len(numbers))):
        odd = [(a, b) for a, b in pairwise(numbers) if b != a + 1]
        wrong.append(f"chunks that do not follow each other: {odd[:5]}, first {numbers[:1]}")
    pictures = times(viewer.file) if viewer.told else []
    told = sum(chunk.frames for _, chunk in viewer.told)
    if len(pictures) != told:
        wrong.append(f"{len(pictures)} pictures of {told}")
    if odd := uneven(pictures):
        wrong.append(f"pictures at odd times: {odd[:5]}")
    done = viewer.done or {}
    report = reports.get(viewer.id)
    if report is None or report.get("error"):
        wrong.append(f"the session's report: {report and report['error']['line']}")
    else:
        again = serving.replayed(server, viewer.id, viewer.seed, report["chunks"], *model)
        if not done.get("latents_sha256") == report["latents_sha256"] == again:
            wrong.append("another hash than that of its recorded inputs")
        if report["chunks"] != len(numbers):
            wrong.append(f"{len(numbers)} chunks seen of {report['chunks']}")
    notices = [kind for _, kind in viewer.seen]
    return {
        "losses": found, "chunks": len(numbers), "pictures": len(pictures), "notices": notices,
        "first and last": [pictures[0], pictures[-1]] if pictures else None, "reason": done.get("reason"),
        "wrong": wrong, "good": not wrong,
    }  # fmt: skip


def times(video: Path) -> list[float]:
    """When each picture is shown."""
    with av.open(str(video)) as container:
        return [round(float(frame.pts * frame.time_base), 4) for frame in container.decode(video=0)]


def main() -> None:
    """One, by hand: `python -m benchmarks.recover_watched LAUNCHER INDEX FOLDER`."""
    import sys

    folder = Path(sys.argv[3])
    print(json.dumps(watched(sys.argv[1], int(sys.argv[2]), folder), indent=1))


if __name__ == "__main__":
    main()
