"""A worker that waits for what does not come says so, and ends."""

import os
import pkgutil
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from parallel.builders import build
from parallel.message import Message
from parallel.schedule import Schedule
from runtime.board import PeerLost
from runtime.cells import Cells
from runtime.head import Sampler
from runtime.local import LocalRun
from runtime.pipeline import results, run_all
from runtime.stages import StageThread
from runtime.workload import describe
from tests.helpers import config_of


def local_run(folder, *overrides: str, stdin=None) -> LocalRun:
    config = config_of("model=nano", "plan=timestep", "sink.video=null", f"output_dir={folder}", *overrides)
    engine = LocalRun(build(config.plan, describe(config)), config, folder, stdin)
    run_all(engine.pipeline, config)
    engine.start()
    return engine


def test_a_pipeline_that_stands_still_ends_with_a_line(tmp_path, monkeypatch):
    """A pass that never becomes ready is found by the head, within the timeout, and named."""
    ready = Schedule._is_ready
    monkeypatch.setattr(
        Schedule,
        "_is_ready",
        lambda self, held, entry: not (entry.item.chunk >= 2 and entry.item.step >= 2) and ready(self, held, entry),
    )
    engine = local_run(tmp_path, "plan.workers=2", "stream.chunks=6", "launcher.timeout_s=4")
    with pytest.raises(PeerLost, match="nothing moves: chunk 2 of stream 0 is not back"):
        engine.wait()


def test_waiting_for_a_live_source_is_no_failure(tmp_path):
    """Silence on the line may last as long as it likes."""
    reading, writing = os.pipe()

    def speak() -> None:
        os.write(writing, bytes(32000))
        time.sleep(3)
        os.write(writing, bytes(32000))
        os.close(writing)

    with os.fdopen(reading, "rb") as stdin:
        engine = local_run(tmp_path, "plan.workers=2", "source.audio=-", "launcher.timeout_s=2", stdin=stdin)
        threading.Thread(target=speak).start()
        engine.wait()
    assert results(engine.pipeline)[0]["chunks"] == 3


@pytest.mark.parametrize("kind", [Sampler, StageThread])
def test_a_thread_that_cannot_start_ends_its_stream_alone(tmp_path, monkeypatch, kind):
    """Be it the one that samples or the one that puts out: the stream ends with the reason, and its end comes."""
    start = threading.Thread.start

    def refused(self):
        if refused.next and self.name in ("sample-0", "output"):
            refused.next = False
            raise RuntimeError("can't start new thread")
        start(self)

    refused.next = True
    monkeypatch.setattr(kind, "start", refused)
    engine = local_run(
        tmp_path, "plan.workers=2", "stream.count=2", "stream.chunks=4", "stream.save_every_chunks=2",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    engine.wait()
    failed, good = results(engine.pipeline)
    assert failed["error"]["line"] == "RuntimeError: can't start new thread"
    assert failed["error"]["where"].endswith("opening")
    assert (good["chunks"], good["finished"], good["state"]["saved"]) == (4, True, 4) and "error" not in good


@pytest.mark.parametrize(
    ("owner", "name", "where"),
    [
        ("parallel.channels:Arrival", "take", "taking in step of chunk"),
        ("parallel.local", "pack_body", "sending step of chunk"),
        ("runtime.messages", "marked", "prefill of chunk 2"),
    ],
)
def test_a_message_that_there_is_no_room_for_ends_its_stream_alone(tmp_path, monkeypatch, owner, name, where):
    """Where it comes in, where it is packed, and where it is made from another."""
    whole = pkgutil.resolve_name(owner)
    real, lock, full = getattr(whole, name), threading.Lock(), []

    def once(*args):
        """The first step of stream 0, or the first time of all, finds no room."""
        message = getattr(args[0], "message", args[0])
        with lock:
            if not full and (not isinstance(message, Message) or (message.stream, message.kind) == (0, "step")):
                full.append(True)
                raise torch.OutOfMemoryError("no room")
        return real(*args) if callable(real) else real.cat(*args)

    monkeypatch.setattr(whole, name, once if callable(real) else SimpleNamespace(cat=once))
    engine = local_run(
        tmp_path, "plan.workers=2", "stream.count=2", "stream.chunks=4", "model.recalibrate_chunk=2",
    )  # fmt: skip
    engine.wait()
    found = results(engine.pipeline)
    (failed,) = (one for one in found if "error" in one)
    (good,) = (one for one in found if "error" not in one)
    assert failed["error"]["kind"] == "OutOfMemoryError" and where in failed["error"]["where"]
    assert good["chunks"] == 4 and good["finished"]


def test_a_stage_that_is_slow_is_named_and_not_lost(tmp_path, caplog):
    """A decoder that takes longer than the timeout is alive: the run goes on, and says who holds it up."""
    engine = local_run(
        tmp_path, "plan.workers=3", "plan.steps=[2,2]", "device=emulated", "device.emulated.step_s=0",
        "device.emulated.decode_s=2.2", "stream.chunks=2", "launcher.timeout_s=2",
        f"sink.video={tmp_path / 'v.mp4'}",
    )  # fmt: skip
    engine.wait()
    assert results(engine.pipeline)[0]["chunks"] == 2
    said = [record.getMessage() for record in caplog.records if "is slow" in record.getMessage()]
    assert said and all(line.startswith("worker 2 is slow: decode of chunk") for line in said)


def test_short_passes_that_add_up_are_no_failure(tmp_path, caplog):
    """A chunk whose steps together take longer than the timeout is on its way all the same, and nobody is named."""
    engine = local_run(
        tmp_path, "plan=sequential", "device=emulated", "device.emulated.step_s=0.28", "launcher.timeout_s=4",
        "model.steps=16", "stream.chunks=1",
    )  # fmt: skip
    engine.wait()
    assert results(engine.pipeline)[0]["chunks"] == 1
    assert not [record for record in caplog.records if "is slow" in record.getMessage()]


def test_what_cannot_travel_ends_its_own_stream(tmp_path, nano, monkeypatch):
    """A tensor of a type that no channel carries, made by whatever went wrong before it."""
    run = Cells.run

    def odd(self, item, message):
        message = run(self, item, message)
        if item.stream == 1 and item.kind == "step" and (item.chunk, item.step) == (1, 1):
            message.tensors = {name: tensor.to(torch.complex64) for name, tensor in message.tensors.items()}
        return message

    monkeypatch.setattr(Cells, "run", odd)
    overrides = ("plan.workers=2", "stream.chunks=3", "stream.count=2")
    engine = local_run(tmp_path, *overrides)
    engine.wait()
    whole, failed = results(engine.pipeline)
    assert whole["latents_sha256"] == nano("stream.id=0", "stream.chunks=3")
    assert failed["error"]["kind"] == "ValueError" and "complex64" in failed["error"]["line"]
