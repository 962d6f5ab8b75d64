"""The first signal ends a run cleanly and a second one at once, at every moment of a run's life."""

import json
import os
import signal
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import psutil
import pytest

from launch import signals, stream
from launch.control import Lines
from launch.progress import ProgressLine
from launch.signals import SIGNALS, Stop, descendants, listening, stop_event
from runtime import process
from stages.sinks.video import VideoSink
from stages.sources.live import LiveBytes
from tests.helpers import sampled
from tests.launch.test_stream import decoded
from tests.patience import PATIENT_S

ROOT = Path(__file__).parents[2]
USR1 = signal.SIGUSR1


@pytest.fixture(autouse=True)
def hangs_up():
    """SIGHUP as a terminal gives it, also where the tests themselves run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def left(monkeypatch):
    """Exit codes of ends at once, which do not happen."""
    codes = []
    monkeypatch.setattr(signals, "leave", codes.append)
    return codes


@pytest.fixture
def clock(monkeypatch):
    """The clock that signals are timed by."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(signals.time, "monotonic", lambda: Clock.now)
    return Clock


class Calls:
    """What a stop calls, in another thread."""

    def __init__(self):
        self.count, self.called = 0, threading.Event()

    def __call__(self):
        self.count += 1
        self.called.set()


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anything_is_streamed_a_signal_ends_the_process(left, capsys, number):
    stop = Stop()
    stop.hear(number)
    assert left == [0] and stop.is_set()
    assert capsys.readouterr().err == "stopped before anything was streamed\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_stops_and_a_second_one_ends_at_once(left, number):
    stop, calls = Stop(), Calls()
    stop.then(calls)
    assert not stop.is_set()
    stop.hear(number)
    assert calls.called.wait(PATIENT_S) and stop.is_set()
    for _ in range(3):
        stop.hear(USR1)
    assert left == []
    stop.hear(signal.SIGINT)
    assert left == [128 + signal.SIGINT] and calls.count == 1


def test_a_signal_that_a_parent_passes_on_is_the_same_one(left, clock):
    stop = Stop(echo_s=1.0)
    stop.then()
    for now in (0.0, 0.2, 0.99):
        clock.now = 100 + now
        stop.hear(signal.SIGINT)
    assert left == []
    clock.now = 101.0
    stop.hear(signal.SIGINT)
    assert left == [130]


def test_who_is_waited_for_tells_the_others_before_it_ends(left, monkeypatch):
    patience, slept = threading.Event(), []
    monkeypatch.setattr(signals.time, "sleep", lambda s: slept.append(s) or patience.wait(PATIENT_S))
    stop, calls = Stop(patience_s=8.0), Calls()
    stop.hear(signal.SIGTERM)
    stop.then(calls)
    patience.set()
    assert calls.count == 1 and left == []
    # One that finds nobody to tell ends in the end.
    ended = threading.Event()
    monkeypatch.setattr(signals, "leave", lambda code: left.append(code) or ended.set())
    Stop(patience_s=8.0).hear(signal.SIGTERM)
    assert ended.wait(PATIENT_S) and left == [143] and slept == [8.0, 8.0]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_heard_and_handlers_put_back(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_event() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(PATIENT_S)
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_hangup_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_leaving_ends_all_that_was_started():
    """Children and theirs, and no thread of the process is waited for."""
    script = (
        "import subprocess, sys, threading, time; from launch import signals\n"
        "child = subprocess.Popen(['sh', '-c', 'sleep 1000 & echo $!; wait'], stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline(), flush=True)\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "sys.stdin.readline(); signals.leave(3)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    family = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
    assert sorted(descendants(run.pid)) == sorted(p.pid for p in family)
    run.communicate("\n", timeout=PATIENT_S)
    assert run.returncode == 3
    assert not psutil.wait_procs(family, timeout=PATIENT_S)[1]


# -- whole runs, in this process ------------------------------------------------------------------------------------


def once(monkeypatch, owner, name, number):
    """Have this process sent a signal when `owner.name` is called first."""
    real, sent = getattr(owner, name), threading.Event()

    def send(*args, **options):
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, send)


PLANS = {"sequential": (), "threads": ("plan=timestep", "plan.workers=2")}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("phase", [(stream.capability, "check"), (stream.planning, "resolve")], ids=lambda p: p[1])
def test_while_the_run_is_composed(tmp_path, monkeypatch, left, plan, phase):
    once(monkeypatch, *phase, signal.SIGTERM)
    stream.main(["model=nano", "stream.chunks=1", "sink.video=null", f"output_dir={tmp_path}/run", *PLANS[plan]])
    assert left[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, USR1])
def test_while_weights_load(tmp_path, monkeypatch, left, capsys, number):
    once(monkeypatch, process, "load_parts", number)
    assert stream.main(["model=nano", f"output_dir={tmp_path}/run", *PLANS["threads"]]) == 0
    assert set(left) == {0}
    assert set(capsys.readouterr().err.splitlines()) == {"stopped before anything was streamed"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("plan", "number"),
    sampled(product(PLANS, SIGNALS), {("sequential", signal.SIGINT), *product(["threads"], SIGNALS)}),
)
def test_while_streaming(tmp_path, monkeypatch, left, plan, number):
    once(monkeypatch, ProgressLine, "__call__", number)
    assert stream.main(["model=nano", f"output_dir={tmp_path}", *PLANS[plan]]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["finished"] is False
    assert decoded(tmp_path / "video.mp4")[0] == report["frames"] > 0
    assert left == []


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("phase", [(VideoSink, "close"), (stream, "assemble")], ids=["draining", "reporting"])
def test_while_it_ends(tmp_path, monkeypatch, left, plan, phase):
    once(monkeypatch, *phase, signal.SIGINT)
    assert stream.main(["model=nano", "stream.chunks=2", f"output_dir={tmp_path}", *PLANS[plan]]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["finished"] is True
    assert decoded(tmp_path / "video.mp4")[0] == report["frames"] == 24
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_while_it_waits_for_a_pipes_writer(tmp_path, monkeypatch, left, number):
    """Nobody has opened the pipe of orders: the run ends, with the report of no stream."""
    pipe, begin, then, read = tmp_path / "orders", stream._begin, Stop.then, Lines._read
    hears, waits = threading.Event(), threading.Event()
    os.mkfifo(pipe)

    def begun(*args):
        folder = begin(*args)
        assert hears.wait(PATIENT_S) and waits.wait(PATIENT_S)
        os.kill(os.getpid(), number)
        return folder

    monkeypatch.setattr(Stop, "then", lambda *args: then(*args) or hears.set())
    monkeypatch.setattr(Lines, "_read", lambda lines: waits.set() or read(lines))
    monkeypatch.setattr(stream, "_begin", begun)
    folder = tmp_path / "run"
    assert stream.main(["model=nano", f"control={pipe}", f"output_dir={folder}", *PLANS["threads"]]) == 0
    assert json.loads((folder / "report.json").read_text())["streams"] == []
    assert left == []


@pytest.mark.parametrize(
    ("source", "plan", "number"),
    sampled(
        product(["audio", "actions"], PLANS, [signal.SIGINT, signal.SIGTERM, USR1]),
        {("audio", "threads", signal.SIGINT), ("audio", "sequential", USR1), ("actions", "threads", signal.SIGTERM)},
    ),
)
def test_while_a_source_waits_for_its_pipes_writer(tmp_path, monkeypatch, left, capsys, source, plan, number):
    """Sound is heard when it is opened, before anything is loaded; actions are asked for with the first chunk."""
    os.mkfifo(pipe := tmp_path / "pipe")
    once(monkeypatch, LiveBytes, "take", number)
    overrides = (f"source.{source}={pipe}", f"output_dir={tmp_path}/run", *PLANS[plan])
    assert stream.main(["model=nano", *overrides]) == 0
    said = capsys.readouterr().err
    assert "stopped before anything was streamed" in said or "no chunk was made" in said
    assert not (tmp_path / "run" / "video.mp4").exists()


def test_a_second_signal_of_a_run_ends_it_at_once(tmp_path, monkeypatch, left):
    """Also while the first is being obeyed: a sink that takes for ever holds nobody."""
    ended = threading.Event()
    monkeypatch.setattr(signals, "leave", lambda code: left.append(code) or ended.set())
    close = VideoSink.close

    def stuck(self):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(PATIENT_S)
        close(self)

    monkeypatch.setattr(VideoSink, "close", stuck)
    once(monkeypatch, ProgressLine, "__call__", signal.SIGTERM)
    assert stream.main(["model=nano", f"output_dir={tmp_path}", *PLANS["threads"]]) == 0
    assert left == [143]


def test_no_job_of_a_multirun_begins_after_a_signal(tmp_path, monkeypatch, left):
    once(monkeypatch, ProgressLine, "__call__", signal.SIGINT)
    jobs = ["stream.seed=1,2", "--multirun"]
    assert stream.main(["model=nano", "sink.video=null", "stream.chunks=3", f"output_dir={tmp_path}", *jobs]) == 0
    assert [path.parent.name for path in tmp_path.glob("*/report.json")] == ["0"]
