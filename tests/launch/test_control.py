"""Streams that are opened, steered and ended by lines of JSON, on running processes."""

import json
import os

import pytest
from safetensors.torch import load_file

from conf.errors import UserError
from launch.control import Control
from tests.helpers import config_of
from tests.launch.test_launchers import report_of, start

SCRIPT = """
{"open": "a", "chunks": 9}
{"open": "endless"}
{"wait": "a"}
{"cancel": "endless"}
{"wait": "endless"}
{"status": true}
{"open": "b", "chunks": 5, "seed": 3, "prompt": "hello", "events": [{"chunk": 2, "prompt": "other"}]}
{"close": true}
{"open": "c", "sink": {"latents": "%s/c.safetensors"}}
{"wait": "b"}
{"stop": "c"}
"""


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_streams_come_and_go_on_running_processes(tmp_path, nano, launcher):
    alone = {
        "a": nano("stream.id=a", "stream.chunks=9"),
        "b": nano(
            "stream.id=b", "stream.chunks=5", "stream.seed=3", "stream.prompt=hello",
            "stream.events=[{chunk: 2, prompt: other}]",
        ),
    }  # fmt: skip
    folder, orders = tmp_path / "run", tmp_path / "orders"
    os.mkfifo(orders)
    process = start(launcher, 3, "model=nano", "plan=timestep", f"output_dir={folder}", f"control={orders}")
    orders.write_text(SCRIPT % tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "control line 9 skipped" in err
    found = {s["stream"]: s for s in report_of(folder)["streams"]}
    assert {name: found[name]["latents_sha256"] for name in alone} == alone
    assert len(load_file(tmp_path / "c.safetensors")) == found["c"]["chunks"]
    assert {"video.a.mp4", "video.endless.mp4", "video.b.mp4"} <= {path.name for path in folder.iterdir()}
    status = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert status["streams"]["a"] == {"ended": True} | status["streams"]["a"]
    assert len(status["workers"]) == 3
    assert all(worker["streams"] == [] for worker in status["workers"])


class Orders:
    """A pipeline that remembers."""

    def __init__(self):
        self.given = []

    def open(self, stream, source, sink, keep):
        self.given.append((stream, source, sink, keep))
        return len(self.given) - 1

    def prompt(self, *order):
        self.given.append(order)

    stop = cancel = prompt


@pytest.fixture
def control(tmp_path):
    orders = tmp_path / "orders"
    orders.write_text("")
    return Control(Orders(), config_of("model=nano", f"control={orders}", "output_dir=x"))


def test_an_opened_stream_is_what_the_configuration_says_with_changes(control):
    control.obey('{"open": "a", "seconds": 5, "sink": {"latents": "l.bin"}}')
    control.obey('{"prompt": "hello", "stream": "a"}')
    (stream, _, sink, keep), prompt = control.pipeline.given
    assert keep is None
    assert (stream.id, stream.seconds, sink.video, sink.latents) == ("a", 5, "x/video.a.mp4", "l.bin")
    assert prompt == (0, "hello")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hello", "is not JSON"),
        ('{"opne": "a"}', "is no order; use one of open"),
        ('{"open": "../a"}', "must be a new name"),
        ('{"open": "a", "sedonds": 5}', "stream.sedonds: there is no such key; did you mean seconds"),
        ('{"open": "a", "seconds": "x"}', "is of a wrong type"),
        ('{"open": "a", "seconds": -1}', "must be above zero"),
        ('{"open": "a", "resume": "nowhere"}', "there is no whole state of stream a in it"),
        ('{"open": "a", "sink": {"vdeo": "x"}}', "did you mean video"),
        ('{"stop": "b"}', "stream=b: there is no such stream"),
        ('{"prompt": "x"}', "there is no such stream"),
    ],
)
def test_a_wrong_line_is_told(control, line, complaint):
    with pytest.raises(UserError, match=complaint):
        control.obey(line)
    assert not control.pipeline.given


def test_no_file_of_orders(job):
    assert "control=missing: there is no such file" in job.fails("model=nano", "plan=timestep", "control=missing")
