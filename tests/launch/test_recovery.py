"""Workers that are lost, and streams that go on: all that may happen in one run, and one that nobody is left for."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import av
import psutil

from launch.running import start
from runtime.pipeline import run_all
from runtime.pulse import key
from tests.helpers import config_of
from tests.launch.losing import EXACT
from tests.launch.started import alive
from tests.launch.started import start as started
from tests.patience import PATIENT_S

MODEL = ("model=nano", "device=cpu", "stream.prompt=hello")


def until(test, over=lambda: False):
    """Wait until something holds; returns it."""
    end = time.monotonic() + PATIENT_S
    while not (found := test()):
        assert time.monotonic() < end and not over(), "it did not come"
        time.sleep(0.01)
    return found


class Streaming:
    """A stream that is driven live, so that it goes on as long as it is wanted, and is told to be so."""

    def __init__(self, run):
        self.run, self.told = run, []
        run.pipeline.changers.append(self.told.append)

    @property
    def chunks(self) -> int:
        return (self.run.pipeline.progress(0) or {"chunks": 0})["chunks"]

    def more(self) -> None:
        """Wait until another chunk has left."""
        known = self.chunks
        until(lambda: self.chunks > known, lambda: self.run.over)

    def stands(self, known: int) -> bool:
        """Whether streams go on, in a generation that was not there when so much had been told."""
        told = self.told[known:]
        return bool(told) and not told[-1]["frozen"]

    def goes_on(self, known: int) -> None:
        """Wait until streams go on."""
        until(lambda: self.stands(known), lambda: self.run.over)
        self.more()

    def lose(self, member: int, how: signal.Signals = signal.SIGKILL) -> None:
        """A member of the plan is lost, and streams go on."""
        known = len(self.told)
        self.hit(member, how)
        self.goes_on(known)

    def hit(self, member: int, how: signal.Signals = signal.SIGKILL) -> None:
        told = self.run.board.told(key(self.run.generation.processes[member]))
        os.kill(int(told["process"].split("/")[1]), how)

    def change(self, **plan) -> None:
        known = len(self.told)
        self.run.pipeline.change(plan)
        self.goes_on(known)

    def lose_while_changing(self, member: int, **plan) -> None:
        """A member of the next plan is lost before that runs."""
        known = len(self.told)
        changing = threading.Thread(target=self.run.pipeline.change, args=(plan,))
        changing.start()
        until(lambda: len(self.told) > known, lambda: self.run.over)
        self.hit(member)
        changing.join(PATIENT_S)
        self.goes_on(known)


@contextmanager
def keys():
    """Standard input of which keys come: (what reads it, what presses one)."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stdin, os.fdopen(writing, "wb", buffering=0) as pressed:
        yield stdin, lambda action: pressed.write(json.dumps({"action": action}).encode() + b"\n")


def members(folder: Path) -> list[int]:
    """Processes that belong to a run."""
    wanted, found = str(folder).encode(), []
    for process in psutil.process_iter():
        try:
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes() and process.status() != "zombie":
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_stream_outlives_what_happens_to_its_workers(tmp_path, job, monkeypatch):
    monkeypatch.setenv("OF_THIS_TEST", str(tmp_path))
    (tmp_path / "cuts").mkdir()
    config = config_of(
        *MODEL, "plan=timestep", "plan.workers=3", "launcher=local", *EXACT, "launcher.spares=1",
        "launcher.silent_s=5", f"launcher.cuts={tmp_path}/cuts", "source.actions=-", f"output_dir={tmp_path}/run",
        f"sink.inputs={tmp_path}/run/inputs.jsonl",
    )  # fmt: skip
    with keys() as (stdin, press), start(config, stdin=stdin, first=lambda pipeline: run_all(pipeline, config)) as run:
        one = Streaming(run)
        press("forward")
        one.more()
        for member, action in ((0, "back"), (2, "left"), (1, "none")):
            press(action)
            one.lose(member)
        one.lose(2, signal.SIGSTOP)
        press("right")
        one.change(workers=2)
        one.lose_while_changing(0, name="layers", workers=2)
        one.more()
        run.pipeline.stop(0)
        run.wait(PATIENT_S)
        result = run.pipeline.result(0)
        records = run.supervisor.records
    assert [record["plan"] for record in records][-1] == "layers" or "lost" in records[-1]["why"]
    assert len(records) >= 6
    again = job(
        *MODEL, f"source.inputs={tmp_path}/run/inputs.jsonl", f"stream.chunks={result['chunks']}", "sink.video=null"
    )
    assert result["latents_sha256"] == again["latents_sha256"]
    with av.open(str(tmp_path / "run" / "video.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == result["frames"] == again["frames"]
    assert [path.name for path in (tmp_path / "run").glob("video*")] == ["video.mp4"]
    assert not list((tmp_path / "cuts").iterdir())
    until(lambda: not members(tmp_path))


def test_a_run_that_nobody_is_left_for_ends_with_one_line(tmp_path):
    run = started(
        "local", 2, *MODEL, "plan=timestep", *EXACT, f"launcher.cuts={tmp_path}",
        f"output_dir={tmp_path}/run", "sink.trace=none",
    )  # fmt: skip
    video = tmp_path / "run" / "video.mp4"
    until(lambda: video.exists() and video.stat().st_size, lambda: run.poll() is not None)
    main = psutil.Process(run.pid)
    seen = main.children()
    while run.poll() is None:
        try:
            for worker in main.children():
                seen.append(worker)
                worker.kill()
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.01)
    _, said = run.communicate(timeout=PATIENT_S)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1, said
    assert len(lines) == 1 and "lost" in lines[0], said
    until(lambda: not any(map(alive, seen)))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
