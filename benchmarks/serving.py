"""A server as a user starts it, and what its processes hold meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.launched import ROOT

COUNTS = "EVERFRAME_COUNTS"
"""The environment variable that names the file into which a server writes what it counts, when told to (SIGUSR2)."""
START_S, END_S = 600.0, 60.0


class Holds(NamedTuple):
    """What a process holds.

    Attributes:
        mib: memory of its own, RssAnon.
        files, sockets: descriptors, sockets among them.
        threads: of the system.
    """

    mib: float
    files: int
    sockets: int
    threads: int


def holds(pid: int) -> Holds:
    """Of a process that is there."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("RssAnon", "Threads"))
    links = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed just now
            links.append(str(one.readlink()))
    return Holds(kib / 1024, len(links), sum(link.startswith("socket:") for link in links), threads)


def children(pid: int) -> list[int]:
    """All processes below a process."""
    try:
        found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        others = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
        found += [int(one) for task in others for one in (task / "children").read_text().split()]
    except OSError:  # gone
        return []
    return [below for one in found for below in (one, *children(one))]


class Server:
    """`everframe serve` in processes of its own; a context.

    Args:
        folder: of its outputs and recorded inputs.
        overrides: of the configuration, `serve.port=0` and where sessions record what they sampled beside.

    Attributes:
        url: where people find it.
        capacity: sessions at once, by model, as it said at its start.
        pid: of the gateway.
    """

    def __init__(self, folder: Path, *overrides: str):
        self.folder, self.capacity, self.url = folder, {}, ""
        self._counts = folder / "counts.json"
        settings = ["serve.port=0", f"output_dir={folder / 'out'}", f"sink.inputs={folder / 'inputs.jsonl'}"]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving", *settings, *overrides],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", COUNTS: str(self._counts)}, text=True,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Server:
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        for line in self._process.stdout:
            if found := re.fullmatch(r"(\S+): (\d+) sessions? at once", line.strip()):
                self.capacity[found[1]] = int(found[2])
            if line.startswith("open "):
                self.url = line.split()[1]
                break
        timer.cancel()
        if not self.url:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise SystemExit(f"the server did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    @property
    def workers(self) -> list[int]:
        """Processes of the model's workers."""
        return children(self.pid)

    def metrics(self) -> dict[str, float]:
        """All that it tells Prometheus, by name and labels."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def sessions(self) -> int:
        """That run or wait, by its metrics."""
        names = ("everframe_sessions_running", "everframe_sessions_waiting")
        return int(sum(value for name, value in self.metrics().items() if name.startswith(names)))

    def emptied(self, within_s: float) -> bool:
        """Whether all sessions end within a time."""
        end = time.monotonic() + within_s
        while self.sessions() and time.monotonic() < end:
            time.sleep(0.25)
        return not self.sessions()

    def counts(self) -> dict[str, int]:
        """`tasks` of the gateway's loop, and its `threads` of Python."""
        self._counts.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR2)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                return json.loads(self._counts.read_text())
            time.sleep(0.05)
        raise SystemExit("the gateway's loop does not answer")

    def reports(self) -> dict[str, dict[str, Any]]:
        """Of streams that have ended, by name."""
        lines = (self.folder / "out" / "streams.jsonl").read_text().splitlines()
        return {report["stream"]: report for report in map(json.loads, lines)}


def replayed(server: Server, id: str, seed: int, chunks: int, *overrides: str) -> str:
    """The hash of a run of the main job that is driven by what a session has recorded.

    Args:
        server: it has ended.
        id, seed: of the session.
        chunks: that it made.
        overrides: of its model.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [
            *overrides, f"output_dir={folder}/out", f"source.inputs={server.folder / f'inputs.{id}.jsonl'}",
            f"stream.id={id}", f"stream.seed={seed}", f"stream.chunks={chunks}", "sink.video=null",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "launch.stream", *given], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the replay of {id} failed:\n{done.stderr[-3000:]}")
        return json.loads((Path(folder) / "out" / "report.json").read_text())["latents_sha256"]


def own_cpu_s() -> float:
    """Seconds of processors that this process, the people at the server, has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _count(*_: object) -> None:
    """Write down what the loop has; a signal's handler, which runs in its thread."""
    with suppress(RuntimeError):  # the loop has not begun
        found = {"tasks": len(asyncio.all_tasks()), "threads": threading.active_count()}
        path = Path(os.environ[COUNTS])
        path.with_suffix(".new").write_text(json.dumps(found))
        path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    from launch import serve

    signal.signal(signal.SIGUSR2, _count)
    sys.exit(serve.main())
