"""A worker that waits for what does not come says so, and ends."""

import os
import threading
import time

import pytest

from parallel.builders import build
from runtime.block import Block
from runtime.local import LocalRun
from runtime.worker import PeerLost
from runtime.workload import describe
from tests.helpers import config_of


def test_a_pipeline_that_stands_still_ends_with_a_line(tmp_path, monkeypatch):
    """A pass that never becomes ready is found by the head, within the timeout, and named."""
    monkeypatch.setattr(Block, "step_ready", lambda self, stream, chunk, step: chunk < 2 or step < 2)
    overrides = ("model=nano", "plan=timestep", "plan.workers=2", "stream.chunks=6", "launcher.timeout_s=1")
    config = config_of(*overrides, "sink.video=null", f"output_dir={tmp_path}")
    plan = build(config.plan, describe(config))
    with pytest.raises(PeerLost, match="nothing moves: chunk 2 of stream 0 is not back"):
        LocalRun(plan, config, threading.Event()).run(tmp_path, lambda stream, timeline: None)


def test_waiting_for_a_live_source_is_no_failure(tmp_path):
    """Silence on the line may last as long as it likes."""
    overrides = ("model=nano", "plan=timestep", "plan.workers=2", "source.audio=-", "launcher.timeout_s=0.5")
    config = config_of(*overrides, "sink.video=null", f"output_dir={tmp_path}")
    plan = build(config.plan, describe(config))
    reading, writing = os.pipe()

    def speak() -> None:
        os.write(writing, bytes(32000))
        time.sleep(1.5)
        os.write(writing, bytes(32000))
        os.close(writing)

    with os.fdopen(reading, "rb") as stdin:
        run = LocalRun(plan, config, threading.Event(), stdin)
        threading.Thread(target=speak).start()
        results = run.run(tmp_path, lambda stream, timeline: None)
    assert results[plan.decode]["streams"][0]["chunks"] == 3
