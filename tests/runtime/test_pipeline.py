"""Streams that come and go on running workers: each is exact, and none disturbs another."""

import threading
import time
from dataclasses import replace

import pytest

from conf.errors import UserError
from parallel.builders import build
from runtime.block import Block
from runtime.conditioning import Conditioning
from runtime.identity import keep_of
from runtime.local import LocalRun
from runtime.worker import Worker
from runtime.workload import describe
from stages.sinks.video import VideoSink
from tests.helpers import config_of
from tests.patience import PATIENT_S

PLANS = {
    "timestep": ("plan=timestep",),
    "layers, clean": ("plan=layers", "model.context=clean"),
    "grid": ("plan=grid", "model.recalibrate_chunk=2"),
}


def until(test) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENT_S
    while not test():
        assert time.monotonic() < end
        time.sleep(0.005)


class Running:
    """A pipeline of `nano` on threads, with streams that differ by name, length and seed."""

    def __init__(self, folder, *overrides: str):
        self.config = config_of("model=nano", "sink.video=null", *overrides)
        self.engine = LocalRun(build(self.config.plan, describe(self.config)), self.config, folder)
        self.pipeline = self.engine.pipeline

    def __enter__(self):
        self.engine.start()
        return self

    def __exit__(self, *_):
        self.pipeline.close()
        self.engine.wait()

    def open(self, name: str, chunks: int | None, source=None, sink=None, **changes) -> int:
        stream = replace(self.config.stream, id=name, chunks=chunks, **changes)
        return self.pipeline.open(stream, source or self.config.source, sink or self.config.sink)

    def hash(self, stream: int) -> str:
        return self.pipeline.result(stream, timeout_s=PATIENT_S)["latents_sha256"]

    def until(self, stream: int, chunks: int) -> None:
        until(lambda: (at := self.pipeline.progress(stream)) is not None and at["chunks"] >= chunks)


@pytest.mark.parametrize("plan", PLANS)
def test_a_later_stream_is_what_it_is_alone(tmp_path, nano, plan):
    """Opened while another runs, after one was cancelled, after one was drained: always the oracle's bits."""
    overrides = PLANS[plan]
    context = [o for o in overrides if o.startswith("model")]
    alone = {
        (name, chunks, seed): nano(f"stream.id={name}", f"stream.chunks={chunks}", f"stream.seed={seed}", *context)
        for name, chunks, seed in (("a", 9, 0), ("b", 5, 1), ("c", 6, 0))
    }
    with Running(tmp_path, *overrides) as running:
        first, endless, drained = running.open("a", 9), running.open("x", None), running.open("y", None)
        running.until(endless, 3)
        second = running.open("b", 5, seed=1)
        running.pipeline.cancel(endless)
        running.until(drained, 3)
        running.pipeline.stop(drained)
        assert running.hash(first) == alone["a", 9, 0]
        assert running.hash(second) == alone["b", 5, 1]
        running.pipeline.wait(endless, PATIENT_S)
        running.pipeline.wait(drained, PATIENT_S)
        assert running.hash(running.open("c", 6)) == alone["c", 6, 0]
        # Nothing is kept of what has ended.
        until(lambda: [w["streams"] for w in running.pipeline.status()] == [[]] * running.engine.plan.workers)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_stream_that_is_ended_early_is_a_beginning_of_itself(tmp_path, nano, plan, end):
    """Drained or cancelled, what has left is whole chunks from the first on, as without the order."""
    with Running(tmp_path, *PLANS[plan]) as running:
        stream = running.open("a", None)
        running.until(stream, 4)
        getattr(running.pipeline, end)(stream)
        result = running.pipeline.result(stream, timeout_s=PATIENT_S)
    assert result["chunks"] >= 4
    context = [o for o in PLANS[plan] if o.startswith("model")]
    assert result["latents_sha256"] == nano("stream.id=a", f"stream.chunks={result['chunks']}", *context)


def test_a_cancelled_stream_costs_no_more_work(tmp_path, monkeypatch):
    """Once a worker has read the order, it computes nothing more of the stream."""
    step, stop, done = Block.step, Worker._stop, []

    def stepped(self, *args):
        done.append((threading.get_ident(), "step"))
        return step(self, *args)

    def stopped(self, *args, **named):
        stop(self, *args, **named)
        done.append((threading.get_ident(), "stop"))

    monkeypatch.setattr(Block, "step", stepped)
    monkeypatch.setattr(Worker, "_stop", stopped)
    with Running(tmp_path, "plan=timestep", "plan.workers=2") as running:
        stream = running.open("a", None)
        running.until(stream, 2)
        running.pipeline.cancel(stream)
        running.pipeline.wait(stream, PATIENT_S)
    workers = {worker for worker, _ in done}
    assert len(workers) == 2
    for worker in workers:
        assert [what for who, what in done if who == worker][-2:] == ["step", "stop"]


def test_a_prompt_changes_a_running_stream(tmp_path, nano, monkeypatch):
    """From the next sampled chunk on, on every worker: the same as an event at that chunk."""
    asked, epochs, changed = Conditioning.epoch, [], threading.Event()

    def noted(self, chunk):
        epochs.append(asked(self, chunk))
        if epochs[-1]:
            changed.set()
        return epochs[-1]

    monkeypatch.setattr(Conditioning, "epoch", noted)
    with Running(tmp_path, "plan=grid", "stream.prompt=hello") as running:
        stream = running.open("a", None)
        running.until(stream, 1)
        running.pipeline.prompt(stream, "other")
        assert changed.wait(PATIENT_S)
        running.until(stream, max(epochs) + 2)
        running.pipeline.stop(stream)
        result = running.pipeline.result(stream, timeout_s=PATIENT_S)
    assert result["control_to_frame_s"]["p50"] > 0
    began, then = sorted(set(epochs))
    assert began == 0
    changes = ("stream.prompt=hello", f"stream.events=[{{chunk: {then}, prompt: other}}]")
    assert result["latents_sha256"] == nano("stream.id=a", f"stream.chunks={result['chunks']}", *changes)


def test_a_bad_source_or_sink_ends_its_own_stream_only(tmp_path, nano):
    blocked = tmp_path / "a file where a folder is wanted"
    blocked.touch()
    with Running(tmp_path, "plan=timestep") as running:
        good = running.open("a", 6)
        no_image = running.open("b", 6, source=replace(running.config.source, image="missing.png"))
        no_latents = running.open("c", 6, sink=replace(running.config.sink, latents=str(blocked / "x.bin")))
        assert running.hash(good) == nano("stream.id=a", "stream.chunks=6")
        for stream, what in ((no_image, "missing.png"), (no_latents, "x.bin")):
            with pytest.raises(UserError, match=what):
                running.pipeline.result(stream, timeout_s=PATIENT_S)
        assert running.hash(running.open("d", 3)) == nano("stream.id=d", "stream.chunks=3")


@pytest.mark.parametrize("plan", ["timestep", "layers, clean"])
def test_streams_are_saved_where_they_are_stopped_and_go_on_later(tmp_path, nano, plan):
    """On the same workers or others; whoever cannot go on, or was cancelled, disturbs nobody."""
    saving = ("stream.save_on_stop=true", f"output_dir={tmp_path}")
    context = [o for o in PLANS[plan] if o.startswith("model")]
    with Running(tmp_path, *saving, *PLANS[plan]) as running:

        def keep(name, resume=None):
            stream = replace(running.config.stream, id=name)
            return keep_of(running.config, stream, running.config.sink, name, resume)

        pipeline, config = running.pipeline, running.config
        first = pipeline.open(replace(config.stream, id="a"), config.source, config.sink, keep("a"))
        second = pipeline.open(replace(config.stream, id="b"), config.source, config.sink, keep("b"))
        for stream in (first, second):
            running.until(stream, 3)
        pipeline.stop(first)
        pipeline.cancel(second)
        stopped = pipeline.result(first, timeout_s=PATIENT_S)
        cancelled = pipeline.result(second, timeout_s=PATIENT_S)
        assert not stopped["finished"] and stopped["state"]["saved"] == stopped["chunks"]
        assert not cancelled["finished"] and cancelled["state"]["saved"] is None
        with pytest.raises(UserError, match="no whole state of stream b"):
            keep("b", str(tmp_path))
        chunks = stopped["chunks"] + 3
        stream = replace(config.stream, id="a", chunks=chunks)
        bad = replace(config.source, image="missing.png")
        refused = pipeline.open(stream, bad, config.sink, keep("a", str(tmp_path)))
        with pytest.raises(UserError, match="no such file"):
            pipeline.result(refused, timeout_s=PATIENT_S)
        again = pipeline.open(stream, config.source, config.sink, keep("a", str(tmp_path)))
        result = pipeline.result(again, timeout_s=PATIENT_S)
    assert result["finished"] and result["state"]["resumed_at"] == stopped["chunks"]
    assert result["latents_sha256"] == nano("stream.id=a", f"stream.chunks={chunks}", *context)


def test_cancelled_video_is_playable(tmp_path):
    from tests.launch.test_stream import decoded

    path = tmp_path / "a.mp4"
    with Running(tmp_path, "plan=timestep", f"sink.video={path}") as running:
        stream = running.open("a", None)
        running.until(stream, 3)
        running.pipeline.cancel(stream)
        result = running.pipeline.result(stream, timeout_s=PATIENT_S)
    assert decoded(path)[0] == result["frames"] > 0


def test_status_answers_while_work_goes_on(tmp_path, monkeypatch):
    with Running(tmp_path, "plan=timestep", "plan.workers=2") as running:
        assert [w["in_flight"] for w in running.pipeline.status()] == [0, None]
        gate = threading.Event()
        work = Block.step

        def held(self, *args):
            gate.wait(0.05)
            return work(self, *args)

        monkeypatch.setattr(Block, "step", held)
        stream = running.open("a", None)
        running.until(stream, 1)
        status = running.pipeline.status()
        assert all(w["streams"] == [stream] for w in status)
        assert status[0]["in_flight"] >= 1
        assert "of stream 0" in status[1]["at"]
        gate.set()
        running.pipeline.cancel(stream)


def test_a_slow_sink_leaves_the_pipeline_usable(tmp_path, monkeypatch, nano):
    """The head waits for it, and the next stream is as exact as ever."""
    write = VideoSink.write

    def slow(self, *args):
        time.sleep(0.03)
        write(self, *args)

    monkeypatch.setattr(VideoSink, "write", slow)
    with Running(tmp_path, "plan=timestep", f"sink.video={tmp_path / 'a.mp4'}") as running:
        stream = running.open("a", 12)
        assert running.hash(stream) == nano("stream.id=a", "stream.chunks=12")
        quick = running.open("b", 5, sink=replace(running.config.sink, video=None))
        assert running.hash(quick) == nano("stream.id=b", "stream.chunks=5")
