"""A stream that is driven live is sampled no faster than it is watched, and holds nobody else up."""

import io
import json
import os
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import SourceConfig
from launch import planning, running, stream
from runtime import conditioning, pace
from runtime.pace import DRIFT, Pace
from tests.helpers import config_of, sampled, thorough
from tests.patience import PATIENT_S


class Clock:
    """Virtual seconds; waiting lets them pass."""

    def __init__(self):
        self.now, self.waited = 0.0, []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 2), st.floats(0, 9)), min_size=1, max_size=30))
def test_it_is_never_faster_than_it_is_watched_but_for_one_chunk(chunks):
    """Chunks of so many seconds, each ready so many seconds after it was asked for."""
    clock, moments = Clock(), []
    paced = Pace(clock.wait, clock)
    for seconds, late in chunks:
        paced.hold()
        clock.now += late
        moments.append((clock.now, seconds))
        paced.sampled(seconds)
    longest = max(seconds for seconds, _ in chunks)
    for first, (begun, _) in enumerate(moments):
        for last in range(first + 1, len(moments)):
            watched = sum(seconds for _, seconds in moments[first:last])
            assert moments[last][0] - begun >= watched * (1 - DRIFT) - longest - 1e-6


def test_a_chunk_is_due_when_the_one_before_has_been_watched(monkeypatch):
    monkeypatch.setattr(pace, "DRIFT", 0.0)
    clock = Clock()
    paced = Pace(clock.wait, clock)
    assert not paced.hold()  # the first: its source is waited for, not the clock
    clock.now = 10.0
    paced.sampled(0.5)
    assert paced.hold() and clock.now == 10.5
    clock.now = 10.75  # late by half a chunk
    paced.sampled(0.5)
    assert paced.hold() and clock.now == 11.0
    clock.now = 20.0  # late by many: they are not made up for
    paced.sampled(0.5)
    assert not paced.hold()
    paced.sampled(0.5)
    assert paced.hold() and clock.now == 20.5


def test_sound_of_a_clock_that_is_a_little_fast_does_not_pile_up():
    clock = Clock()
    paced = Pace(clock.wait, clock)
    for chunk in range(1000):
        paced.hold()
        clock.now = max(clock.now, chunk * 0.75 * (1 - DRIFT / 2))  # it has come
        paced.sampled(0.75)
    assert clock.now == pytest.approx(999 * 0.75 * (1 - DRIFT / 2))


def test_what_comes_through_a_pipe_is_paced(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    (file := tmp_path / "file").touch()
    config = config_of("model=nano")
    for name in ("audio", "actions"):
        for path, live in (("-", True), (str(pipe), True), (str(file), False), (None, False)):
            source = SourceConfig(**{name: path})
            assert (source.live, source.paced) == (live, live)
            assert not SourceConfig(**{name: path}, pace="free").paced
            assert planning.demand(replace(config, source=source)).paced == live


def test_a_pace_that_there_is_not(job):
    assert job.fails("model=nano", "source.pace=fast") == (
        "source.pace=fast: must be one of live, free; use one of these"
    )


PLANS = ("sequential", "timestep")
LINES = b"".join(b'{"frame": %d, "action": "left"}\n' % frame for frame in (0, 15, 30))


@pytest.mark.parametrize(
    ("plan", "kind"), sampled(product(PLANS, ["live", "free"]), {("sequential", "live"), ("timestep", "live")})
)
def test_a_live_stream_asks_its_clock_before_every_chunk_but_the_first(job, monkeypatch, nano, tmp_path, plan, kind):
    clock = Clock()
    monkeypatch.setattr(conditioning, "Pace", lambda wait: Pace(clock.wait, clock))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    live = nano(f"plan={plan}", "source.actions=-", f"source.pace={kind}", f"sink.inputs={tmp_path}/inputs")
    # Virtual time passes by waiting alone. The last line is in chunk 2.
    assert clock.waited == (pytest.approx([12 / 16 * (1 - DRIFT)] * 2) if kind == "live" else [])
    clock.waited.clear()
    assert nano(f"plan={plan}", f"source.inputs={tmp_path}/inputs") == live
    assert not clock.waited


def test_streams_that_wait_for_their_clock_can_be_ended_and_hold_nobody(tmp_path, monkeypatch):
    waits = threading.Semaphore(0)

    class Slow(Pace):
        """An hour a chunk."""

        def sampled(self, seconds):
            super().sampled(3600)
            waits.release()

    monkeypatch.setattr(conditioning, "Pace", Slow)
    overrides = ("model=nano", "plan=timestep", "plan.workers=2", "sink.video=null", f"output_dir={tmp_path}/run")
    config, ends, held = config_of(*overrides), ("stop", "cancel"), {}
    with running.start(config) as run, ExitStack() as writers:
        for end in ends:
            os.mkfifo(pipe := tmp_path / end)
            writer = os.open(pipe, os.O_RDWR)  # without waiting for a reader
            writers.callback(os.close, writer)
            os.write(writer, b'{"action": "left"}\n')
            source = replace(config.source, actions=str(pipe))
            held[end] = run.pipeline.open(replace(config.stream, id=end), source, config.sink)
        assert all(waits.acquire(timeout=PATIENT_S) for _ in ends)
        free = run.pipeline.open(replace(config.stream, id="free", chunks=3), config.source, config.sink)
        assert run.pipeline.result(free, PATIENT_S)["chunks"] == 3
        for end, number in held.items():
            assert not run.pipeline.ended(number)
            getattr(run.pipeline, end)(number)
            assert run.pipeline.report(number, PATIENT_S)["chunks"] <= 1


LEFT_OUT = {
    "actions": "source.actions=-: ended before any action came; write lines like ",
    "audio": "source.audio=-: ended before any sound came; pipe 16-bit 16 kHz mono PCM",
}
SAID = (("actions", b""), ("actions", b"nonsense\n"), ("audio", b""), ("audio", b"x"))
OFTEN = {("sequential", SAID[0]), ("sequential", SAID[3]), ("timestep", SAID[1])}


@pytest.mark.parametrize(("plan", "what"), sampled(product(PLANS, SAID), OFTEN))
def test_a_source_that_ends_before_it_says_anything(tmp_path, monkeypatch, capsys, plan, what):
    """One line and exit code 2, also where a length is asked for; nothing is announced that is not there."""
    source, said = what
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
    overrides = (f"plan={plan}", f"source.{source}=-", "stream.chunks=3", f"output_dir={tmp_path}/run")
    assert stream.main(["model=nano", *overrides]) == 2
    out, err = capsys.readouterr()
    [error] = [x for x in err.splitlines() if x.startswith("error: ")]
    assert error.startswith(f"error: {LEFT_OUT[source]}") and "video:" not in out
    assert not (tmp_path / "run" / "video.mp4").exists()


@pytest.mark.parametrize("plan", ["sequential", thorough("timestep")])
def test_a_source_that_says_one_thing_is_shown(tmp_path, monkeypatch, plan):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"action": "forward"}\n')))
    assert stream.main(["model=nano", f"plan={plan}", "source.actions=-", f"output_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["chunks"] == 1
    assert (tmp_path / "video.mp4").stat().st_size
