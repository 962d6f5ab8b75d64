"""A stream that is driven live is sampled no faster than it is watched, and holds nobody else up."""

import io
import json
import os
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import SourceConfig
from launch import planning, running, stream
from runtime import conditioning, pace
from runtime.pace import DRIFT, Pace
from tests.helpers import config_of


class Clock:
    """Virtual seconds; waiting lets them pass."""

    def __init__(self):
        self.now, self.waited = 0.0, []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


@settings(max_examples=50, deadline=None)
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
    for name in ("audio", "actions"):
        for path, live in (("-", True), (str(pipe), True), (str(file), False), (None, False)):
            source = SourceConfig(**{name: path})
            assert (source.live, source.paced) == (live, live)
            assert not SourceConfig(**{name: path}, pace="free").paced
            given = [] if path is None else [f"source.{name}={path}"]
            assert planning.demand(config_of("model=nano", *given)).paced == live


def test_a_pace_that_there_is_not(job):
    assert job.fails("model=nano", "source.pace=fast") == (
        "source.pace=fast: must be one of live, free; use one of live, free"
    )


LINES = b"".join(b'{"frame": %d, "action": "left"}\n' % frame for frame in (0, 15, 30))


@pytest.mark.parametrize("kind", ["live", "free"])
@pytest.mark.parametrize("plan", ["sequential", "timestep"])
def test_a_live_stream_asks_its_clock_before_every_chunk_but_the_first(job, monkeypatch, nano, tmp_path, plan, kind):
    clock = Clock()
    monkeypatch.setattr(conditioning, "Pace", lambda wait: Pace(clock.wait, clock))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    live = nano(f"plan={plan}", "source.actions=-", f"source.pace={kind}", f"sink.inputs={tmp_path}/inputs")
    # Virtual time passes by waiting alone. The last line is in chunk 2.
    assert clock.waited == (pytest.approx([12 / 16 * (1 - DRIFT)] * 2) if kind == "live" else [])
    clock.waited.clear()
    (file := tmp_path / "keys").write_bytes(LINES)
    assert nano(f"plan={plan}", f"source.actions={file}") == nano(f"source.inputs={tmp_path}/inputs") == live
    assert not clock.waited


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_stream_that_waits_for_its_clock_can_be_ended_and_holds_nobody(tmp_path, monkeypatch, nano, end):
    waits = threading.Event()

    class Slow(Pace):
        """An hour a chunk."""

        def sampled(self, seconds):
            super().sampled(3600)
            waits.set()

    monkeypatch.setattr(conditioning, "Pace", Slow)
    reading, writing = os.pipe()
    os.write(writing, b'{"action": "left"}\n')
    overrides = ("model=nano", "plan=timestep", "plan.workers=2", "sink.video=null", f"output_dir={tmp_path}/run")
    config = config_of(*overrides)
    with os.fdopen(reading, "rb") as stdin, running.start(config, stdin=stdin) as run:
        held = run.pipeline.open(replace(config.stream, id="held"), replace(config.source, actions="-"), config.sink)
        assert waits.wait(60)
        free = run.pipeline.open(replace(config.stream, id="free", chunks=3), config.source, config.sink)
        expected = nano("stream.id=free", "stream.chunks=3")
        assert run.pipeline.result(free, 60)["latents_sha256"] == expected
        assert not run.pipeline.ended(held)
        getattr(run.pipeline, end)(held)
        assert run.pipeline.report(held, 60)["chunks"] <= 1
    os.close(writing)


@pytest.mark.parametrize("plan", ["sequential", "timestep"])
@pytest.mark.parametrize(
    ("source", "said", "line"),
    [
        ("actions", b"", "source.actions=-: ended before any action came; write lines like "),
        ("actions", b"nonsense\n", "source.actions=-: ended before any action came; write lines like "),
        ("audio", b"", "source.audio=-: ended before any sound came; pipe 16-bit 16 kHz mono PCM"),
        ("audio", b"x", "source.audio=-: ended before any sound came; pipe 16-bit 16 kHz mono PCM"),
    ],
)
def test_a_source_that_ends_before_it_says_anything(tmp_path, monkeypatch, capsys, plan, source, said, line):
    """One line and exit code 2, also where a length is asked for; nothing is announced that is not there."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
    overrides = (f"plan={plan}", f"source.{source}=-", "stream.chunks=3", f"output_dir={tmp_path}/run")
    assert stream.main(["model=nano", *overrides]) == 2
    out, err = capsys.readouterr()
    [error] = [x for x in err.splitlines() if x.startswith("error: ")]
    assert error.startswith(f"error: {line}") and "video:" not in out
    assert not (tmp_path / "run" / "video.mp4").exists()


@pytest.mark.parametrize("plan", ["sequential", "timestep"])
def test_a_source_that_says_one_thing_is_shown(tmp_path, monkeypatch, plan):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"action": "forward"}\n')))
    assert stream.main(["model=nano", f"plan={plan}", "source.actions=-", f"output_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["chunks"] == 1
    assert (tmp_path / "video.mp4").stat().st_size
