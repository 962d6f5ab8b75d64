"""What is held of a running pipeline: the same under every launcher."""

import io
import json
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from conf.errors import UserError
from launch import running, stream
from runtime.board import PeerLost
from runtime.running import Running, Stopped, WorkerFailed
from runtime.worker import Worker
from stages.sinks.video import VideoSink
from stages.sources.audio_file import AudioFile
from tests.helpers import config_of, thorough
from tests.launch.started import start as start_job
from tests.patience import PATIENT_S

LOCAL = {"threads": ("launcher.threads=true",), "processes": ("launcher.threads=false",)}
BASE = ("model=nano", "plan=timestep", "plan.workers=2", "device=cpu", "sink.video=null")
BUG = '''
import sys
from importlib.machinery import PathFinder


class Broken:
    """Every worker raises what no worker should."""

    def find_spec(self, name, path, target=None):
        if name != "runtime.worker":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.Worker.run = lambda self: {}["a bug"]

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Broken())
'''
"""As sitecustomize.py on the PYTHONPATH of a process."""


def begin(folder, *overrides: str, **options) -> Running:
    """A run without streams of its own."""
    return running.start(config_of(*BASE, f"output_dir={folder}", *overrides), **options)


def open_one(run: Running, name: str, chunks: int | None) -> int:
    config = run.config
    return run.pipeline.open(replace(config.stream, id=name, chunks=chunks), config.source, config.sink)


def until(test) -> None:
    end = time.monotonic() + PATIENT_S
    while not test():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_streams_come_and_go_until_it_is_closed(tmp_path, nano):
    alone = {n: nano(f"stream.id={n}", "stream.chunks=3") for n in ("a", "b")}
    with begin(tmp_path / "run") as run:
        for name, expected in alone.items():
            found = run.pipeline.result(open_one(run, name, 3), timeout_s=PATIENT_S)
            assert found["latents_sha256"] == expected
        run.close()
        run.close()
        reports = run.wait(PATIENT_S)
        assert run.wait() == reports
    assert [report["worker"] for report in reports] == ["worker0", "worker1"]


@pytest.mark.parametrize("launcher", LOCAL)
def test_health_says_what_everyone_is_at_and_who_is_lost(tmp_path, nano, launcher):
    gate = threading.Event()
    config = config_of(*BASE, f"output_dir={tmp_path}/run", *LOCAL[launcher])
    with running.start(config, begin=lambda: gate.wait(PATIENT_S)) as run:
        until(lambda: {one.at for one in run.health()} == {"waiting for the others to load"})
        assert not run.begun
        gate.set()
        found = run.pipeline.result(open_one(run, "a", 3), timeout_s=PATIENT_S)
        assert found["latents_sha256"] == nano("stream.id=a", "stream.chunks=3")
        endless = open_one(run, "endless", None)
        until(lambda: all(re.fullmatch(r"[\w.]+ of chunk \d+ of stream 1", one.at) for one in run.health()))
        health = run.health()
        assert [one.worker for one in health] == ["0", "1"]
        assert all(one.alive and one.loaded and one.lost is None for one in health)
        assert all(one.at_s >= 0 and one.moved_s >= 0 for one in health)
        if launcher == "processes":
            run._workers[1].kill()
            for wait in (partial(run.wait, PATIENT_S), partial(run.pipeline.result, endless)):
                with pytest.raises(PeerLost, match="worker 1 is lost"):
                    wait()
            assert "SIGKILL" in run.health()[1].lost
        else:
            run.interrupt()
            run.wait(PATIENT_S)
            assert run.pipeline.result(endless)["finished"] is False
        assert not any(one.alive for one in run.health())


def test_threads_have_ended_when_their_run_has(tmp_path):
    with begin(tmp_path / "run", *LOCAL["threads"]) as run:
        open_one(run, "endless", None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]


@pytest.mark.parametrize("launcher", ["threads", thorough("processes")])
def test_closed_now_it_ends_at_once(tmp_path, launcher):
    with begin(tmp_path / "run", *LOCAL[launcher]) as run:
        number = open_one(run, "endless", None)
        until(lambda: run.pipeline.progress(number))
        run.close(now=True)
        with pytest.raises(Stopped):
            run.wait(PATIENT_S)
        with pytest.raises(Stopped):
            run.pipeline.result(number)


@pytest.mark.parametrize("launcher", LOCAL)
def test_given_up_while_loading_it_leaves_nothing(tmp_path, launcher):
    with begin(tmp_path / "run", *LOCAL[launcher]) as run:
        run.interrupt()
        with pytest.raises(Stopped, match="stopped before anything was streamed"):
            run.wait(PATIENT_S)
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_start_says_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['launch.worker'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = begin(tmp_path / "run", *LOCAL["processes"])
    with run, pytest.raises(PeerLost, match=r"exit code 1: .*launch\.worker"):
        run.wait(PATIENT_S)


def test_a_bug_in_a_thread_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "run", lambda self: {}["a bug"])
    with begin(tmp_path / "run", *LOCAL["threads"]) as run:
        number = open_one(run, "a", 3)
        with pytest.raises(KeyError, match="a bug"):
            run.wait(PATIENT_S)
        with pytest.raises(KeyError, match="a bug"):
            run.pipeline.result(number)


def test_a_bug_in_a_process_is_told_with_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(BUG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with begin(tmp_path / "run", *LOCAL["processes"]) as run:
        with pytest.raises(WorkerFailed, match=r"worker \d, nothing yet: KeyError: 'a bug'") as failed:
            run.wait(PATIENT_S)
        assert "runtime/process.py" in failed.value.traceback


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_a_bug_is_told_once_by_every_launcher(tmp_path, monkeypatch, launcher):
    (tmp_path / "sitecustomize.py").write_text(BUG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = start_job(launcher, 2, "model=nano", "plan=timestep", f"output_dir={tmp_path}/run")
    _, err = job.communicate(timeout=PATIENT_S)
    assert job.returncode == 1
    assert err.count("KeyError: 'a bug'") == (1 if launcher == "torchrun" else 2), err  # Ray: a traceback and a line
    assert "is lost" not in err


def test_mistakes_show_before_the_folder_is_made(tmp_path):
    """Of `first`, of a source, and of the folder itself."""
    config = config_of(*BASE, f"output_dir={tmp_path}/run", "source.image=/proc/nowhere.png")
    opened = {"first": lambda pipeline: pipeline.open(config.stream, config.source, config.sink)}
    with running.start(config, **opened) as run, pytest.raises(UserError, match=r"source.image=/proc/nowhere.png"):
        run.wait(PATIENT_S)
    (tmp_path / "file").write_text("a file, not a folder")
    with begin(tmp_path / "file" / "run") as run, pytest.raises(UserError, match="cannot be made"):
        run.wait(PATIENT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("launcher", ["threads", thorough("processes")])
def test_a_mistake_of_a_stream_that_comes_while_weights_load_is_its_own(tmp_path, nano, launcher):
    with begin(tmp_path / "run", *LOCAL[launcher]) as run:
        config = run.config
        bad = replace(config.source, image="/proc/nowhere.png")
        number = run.pipeline.open(replace(config.stream, id="bad"), bad, config.sink)
        assert not run.begun
        good = open_one(run, "good", 2)
        with pytest.raises(UserError, match=r"source.image=/proc/nowhere.png"):
            run.pipeline.result(number, PATIENT_S)
        assert run.pipeline.result(good, PATIENT_S)["latents_sha256"] == nano("stream.id=good", "stream.chunks=2")


def test_live_input_reaches_the_process_that_encodes(tmp_path, nano, speech):
    """Standard input goes to the worker that samples, whatever kind of stream it is given as."""
    expected = nano(f"source.audio={speech}")
    pcm = (AudioFile(speech).read(10**6) * 32768).round().astype("<i2").tobytes()
    config = config_of(*BASE, f"output_dir={tmp_path}/run", "launcher.threads=false")
    with running.start(config, stdin=io.BytesIO(pcm)) as run:
        number = run.pipeline.open(config.stream, replace(config.source, audio="-", pace="free"), config.sink)
        assert run.pipeline.result(number, PATIENT_S)["latents_sha256"] == expected


# -- the main job as its user --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("sink.video=x", "a full disk", "make room"), 2, "error: sink.video=x: a full disk; make room"),
        (ValueError("a bug of a sink"), 1, "a bug of a sink"),
    ],
    ids=["a mistake", "a fault"],
)
@pytest.mark.parametrize("plan", [("plan=sequential",), ("plan=timestep", "plan.workers=2")], ids=lambda plan: plan[0])
def test_a_stream_that_ends_costs_no_other_its_report(tmp_path, monkeypatch, capsys, plan, error, code, line):
    """The exit code is that of the run's own streams, and says nothing before everything was written."""
    add = VideoSink.write

    def write(self, *args):
        if "0" in Path(self.path).name:
            raise error
        add(self, *args)

    monkeypatch.setattr(VideoSink, "write", write)
    overrides = ("model=nano", *plan, "stream.count=2", "stream.chunks=2")
    assert stream.main([*overrides, f"output_dir={tmp_path}"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert [x for x in lines if x.startswith("error: ")] and line in lines[-1]
    found = {one["stream"]: one for one in json.loads((tmp_path / "report.json").read_text())["streams"]}
    assert "error" not in found["1"] and found["1"]["frames"] == 24
    assert line.removeprefix("error: ") in found["0"]["error"]["line"]


@pytest.mark.parametrize("plan", ["sequential", "timestep"])
def test_a_file_that_cannot_be_made_costs_no_other_stream_its_own(tmp_path, capsys, monkeypatch, plan):
    """One that could have been made when the run was looked at."""
    begin = stream._begin
    monkeypatch.setattr(stream, "_begin", lambda *args: (tmp_path / "v.0.mp4").mkdir() or begin(*args))
    overrides = ("model=nano", f"plan={plan}", "stream.count=2", "stream.chunks=2", f"sink.video={tmp_path}/v.mp4")
    assert stream.main([*overrides, f"output_dir={tmp_path}/run"]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and f"sink.video={tmp_path}/v.0.mp4" in errors[0]
    failed, good = json.loads((tmp_path / "run" / "report.json").read_text())["streams"]
    assert failed["error"]["user"] and not failed["finished"]
    assert good["finished"] and good["frames"] == 24 and (tmp_path / "v.1.mp4").is_file()
    assert sorted(x.name for x in (tmp_path / "run").iterdir()) == ["config.yaml", "report.json", "trace.json"]


def test_streams_by_orders_are_lines(tmp_path, capsys, caplog):
    """The plan that a run has by default obeys orders; a stream that ends by a fault is one warning, no exit code."""
    orders = tmp_path / "orders"
    opened = [{"open": "a", "seconds": 1.2}, {"wait": "a"}, {"open": "b", "source": {"image": "/proc/nowhere.png"}}]
    orders.write_text("".join(json.dumps(order) + "\n" for order in opened))
    folder = tmp_path / "run"
    base = ("model=nano", "sink.video=null", "stream.chunks=7")
    assert stream.main([*base, f"control={orders}", f"output_dir={folder}"]) == 0
    lines = [json.loads(line) for line in (folder / "streams.jsonl").read_text().splitlines()]
    assert [one["stream"] for one in lines] == ["a", "b"]
    assert "error" not in lines[0]
    assert "source.image=/proc/nowhere.png" in lines[1]["error"]["line"]
    report = json.loads((folder / "report.json").read_text())
    assert report["totals"] == {"streams": 2, "ended_by_faults": 1, "chunks": 2, "frames": 24}
    assert [one["stream"] for one in report["streams"]] == ["a", "b"]
    warned = [record.getMessage() for record in caplog.records if "ended:" in record.getMessage()]
    assert warned == [f"stream b ended: {lines[1]['error']['line']}"]
