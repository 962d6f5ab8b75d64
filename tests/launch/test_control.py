"""Streams that are opened, steered and ended by lines of JSON, on running processes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from benchmarks.control_lines import MAIN, lines
from conf.errors import UserError
from launch.control import BLOCK, LONGEST_LINE, Control, Lines
from runtime.board import PeerLost
from runtime.orders import Close, Open, Stop
from tests.launch.started import report_of, start
from tests.patience import PATIENT_S
from tests.runtime.driven import Driven

SCRIPT = """
{"open": "a", "chunks": 9}
{"open": "endless"}
{"wait": "a"}
{"cancel": "endless"}
{"wait": "endless"}
{"open": "b", "chunks": 5, "seed": 3, "prompt": "hello", "events": [{"chunk": 2, "prompt": "other"}]}
{"close": true}
{"open": "c", "sink": {"latents": "%s/c.safetensors"}}
{"wait": "b"}
{"status": true}
{"stop": "c"}
"""


def come_and_go(nano, folder: Path, launcher: str, *overrides: str) -> dict[str, int]:
    """Obey `SCRIPT` on two processes, and say which node each of them was on."""
    alone = {
        "a": nano("stream.id=a", "stream.chunks=9"),
        "b": nano(
            "stream.id=b", "stream.chunks=5", "stream.seed=3", "stream.prompt=hello",
            "stream.events=[{chunk: 2, prompt: other}]",
        ),
    }  # fmt: skip
    orders, run = folder / "orders", folder / "run"
    os.mkfifo(orders)
    process = start(launcher, 2, "model=nano", "plan=timestep", f"output_dir={run}", f"control={orders}", *overrides)
    orders.write_text(SCRIPT % folder)
    out, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    assert "control line 8 skipped" in err
    found = {s["stream"]: s for s in report_of(run)["streams"]}
    assert {name: found[name]["latents_sha256"] for name in alone} == alone
    assert len(load_file(folder / "c.safetensors")) == found["c"]["chunks"]
    assert {"video.a.mp4", "video.endless.mp4", "video.b.mp4"} <= {path.name for path in run.iterdir()}
    status = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert status["streams"]["a"]["ended"] and status["streams"]["a"]["chunks"] == 9
    assert status["streams"]["endless"]["ended"]
    assert (status["plan"], status["generation"]) == ({"name": "timestep", "workers": 2}, 0)
    assert len({worker["process"] for worker in status["workers"]}) == 2
    # Streams are numbered as they were opened; of those that ended before others came nothing is left.
    assert all(set(worker["streams"]) <= {2, 3} for worker in status["workers"])
    return report_of(run)["nodes"]


def test_streams_come_and_go_on_running_processes(tmp_path, nano):
    come_and_go(nano, tmp_path, "torchrun")


@pytest.fixture
def driven(tmp_path):
    orders = tmp_path / "orders"
    orders.write_text("")
    with Driven(f"control={orders}") as driven:
        yield driven


@pytest.fixture
def control(driven):
    return Control(driven.pipeline, driven.config)


def test_an_opened_stream_is_what_the_configuration_says_with_changes(driven, control):
    control.obey('{"open": "a", "seconds": 5, "sink": {"latents": "l.bin"}}')
    control.obey('{"prompt": "hello", "stream": "a"}')
    opened, prompt = driven.orders()
    assert opened.keep is None
    found = (opened.config.id, opened.config.seconds, opened.sink.video, opened.sink.latents)
    assert found == ("a", 5, "x/video.a.mp4", "l.bin")
    assert (prompt.stream, prompt.prompt) == (0, "hello")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hello", "is not JSON"),
        ("[" * 20_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        ('{"stop": NaN}', "NaN is no number"),
        ('{"stop": "a", "stop": "b"}', "a key stands twice"),
        ("5", "is no order"),
        ("{}", "is no order"),
        ('{"opne": "a"}', "is no order; did you mean open"),
        ('{"open": "../a"}', "must be a name of letters"),
        ('{"open": ["a"]}', "stream.id=.*: must be text"),
        ('{"open": "a", "id": "b"}', "stream.id: is not for an order to say"),
        ('{"open": "a", "sedonds": 5}', "stream.sedonds: there is no such key; did you mean seconds"),
        ('{"open": "a", "seconds": "x"}', 'stream.seconds="x": must be a number; give a number'),
        ('{"open": "a", "seconds": -1}', "must be above zero"),
        ('{"open": "a", "prompt": 5}', "stream.prompt=5: must be text"),
        (
            '{"open": "a", "chunks": 1%s}' % ("0" * 30),
            "stream.chunks=1000.*: must be a whole number of at most 64 bits",
        ),
        ('{"open": "a", "height": 512, "width": 512}', "this run makes pictures of"),
        ('{"open": "a", "events": 5}', "stream.events=5: must be a list"),
        ('{"open": "a", "source": null}', "source=null: must be an object"),
        ('{"open": "a", "resume": "nowhere"}', "there is no whole state of stream a in it"),
        ('{"open": "a", "resume": 5}', "resume=5: must be text"),
        ('{"open": "a", "sink": {"vdeo": "x"}}', "did you mean video"),
        ('{"stop": "b"}', 'stream="b": there is no such stream'),
        ('{"stop": []}', "there is no such stream"),
        ('{"wait": {}}', "there is no such stream"),
        ('{"stop": null, "cancel": "b"}', "there is no such key; leave it out"),
        ('{"prompt": "x"}', "there is no such stream"),
    ],
)
def test_a_wrong_line_is_told(driven, control, line, complaint):
    with pytest.raises(UserError, match=complaint):
        control.obey(line)
    assert not driven.orders()


def test_a_name_is_free_again_once_its_stream_has_ended(driven, control):
    control.obey('{"open": "a"}')
    with pytest.raises(UserError, match="a stream of that name is open"):
        control.obey('{"open": "a"}')
    control.obey('{"stop": "a"}')
    control.obey('{"wait": "a"}')
    control.obey('{"stop": "a"}')  # it has just ended: nothing to stop, and nothing wrong
    control.obey('{"open": "a"}')
    assert [type(order) for order in driven.orders()] == [Open, Stop, Stop, Open]
    assert driven.pipeline.names == {"a": 1}


def read(path: Path, text: bytes) -> list[bytes | None]:
    path.write_bytes(text)
    lines = Lines(str(path))
    try:
        return list(lines)
    finally:
        lines.close()


def test_lines_are_whole_however_they_come(tmp_path):
    long = b"y" * LONGEST_LINE
    text = b"a\n\n" + b"x" * (BLOCK + 5) + b"\n" + long + b"\n" + long + b"z\nb\nlast"
    assert read(tmp_path / "lines", text) == [b"a", b"", b"x" * (BLOCK + 5), long, None, b"b", b"last"]
    assert read(tmp_path / "lines", b"a\n" + long + b"zz") == [b"a", None]
    assert read(tmp_path / "lines", b"") == []


@pytest.mark.parametrize("writer", ["never comes", "is idle"])
def test_orders_end_when_the_pipeline_is_closed(tmp_path, writer):
    """Also if the writer of a named pipe never comes, or keeps it open; so a run that is stopped by a signal ends."""
    pipe = tmp_path / "orders"
    os.mkfifo(pipe)
    with Driven(f"control={pipe}") as driven:
        control = Control(driven.pipeline, driven.config)
        control.start()
        if writer == "is idle":
            held = os.open(pipe, os.O_WRONLY)
            os.write(held, b'{"open": "a"}\n')
            driven.pipeline.until(lambda: bool(driven.pipeline.names), PATIENT_S)
        driven.pipeline.close()
        control.join(PATIENT_S)
        assert not control.is_alive()
        assert driven.orders()[-1] == Close(number=ANY)
        if writer == "is idle":
            os.close(held)


@pytest.mark.parametrize("end", ["close", "lost"])
def test_waiting_ends_with_the_pipeline(driven, end):
    """A line that waits for an endless stream holds nobody up when the pipeline is closed, or its workers are lost."""
    orders = Path(driven.config.control)
    orders.write_text('{"open": "a"}\n{"wait": "a"}\n{"open": "b"}\n')
    control = Control(driven.pipeline, driven.config)
    control.start()
    driven.pipeline.until(lambda: bool(driven.pipeline.names), PATIENT_S)
    if end == "close":
        driven.pipeline.close()
    else:
        driven.pipeline.lost(PeerLost("worker 1 is lost"))
    control.join(PATIENT_S)
    assert not control.is_alive()
    assert list(driven.pipeline.names) == ["a"]


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "launch.control"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a", "main", "-"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "open",
        "prompt",
        "stop",
        "cancel",
        "wait",
        "status",
        "stream",
        "chunks",
        "seconds",
        "events",
        "source",
        "sink",
        "id",
    ]
)
LINES = (
    st.binary(max_size=60)
    | JUNK.map(json.dumps).map(str.encode)
    | st.dictionaries(KEYS, JUNK).map(lambda order: json.dumps(order).encode())
)


def test_whatever_a_line_holds_the_next_one_is_obeyed(tmp_path, caplog):
    """At most one warning each, nothing raised, and nothing but whole orders for the workers."""
    orders = tmp_path / "orders"
    orders.write_text("")
    with Driven(f"control={orders}", brief=True) as driven:
        control = Control(driven.pipeline, driven.config)

        @settings(max_examples=400)
        @given(LINES)
        def holds(line):
            caplog.clear()
            control.take(1, line)
            assert len(warnings(caplog)) <= 1
            caplog.clear()
            control.take(2, b'{"open": "next"}')
            control.take(3, b'{"wait": "next"}')
            assert not warnings(caplog)
            *_, opened = driven.heard()  # it has ended, so its order was read
            assert isinstance(opened, Open) and opened.config.id == "next"

        holds()


def test_every_bad_line_gets_one_warning_and_the_good_ones_are_obeyed(tmp_path, caplog):
    """As `benchmarks.control` asks of running workers."""
    orders, written = tmp_path / "orders", list(lines(1500, seed=1))
    orders.write_bytes(b"\n".join(line.text for line in written) + b"\n")
    with Driven(f"control={orders}") as driven:
        config = driven.config
        main = driven.pipeline.open(replace(config.stream, id=MAIN), config.source, config.sink)
        control = Control(driven.pipeline, config)
        for number, (line, at) in enumerate(zip(written, Lines(str(orders)), strict=True), 1):
            if b'"wait"' in line.text and line.good:
                driven.pipeline.cancel(driven.pipeline.number(json.loads(line.text)["wait"]))
            caplog.clear()
            control.take(number, at)
            assert len(warnings(caplog)) == (not line.good), line
        assert not driven.pipeline.ended(main)
        heard = driven.orders()
        assert not any(getattr(order, "stream", None) == main for order in heard[1:])
        opened = [order for order in heard if isinstance(order, Open)]
        assert len(opened) == 1 + sum(b'"open"' in line.text and line.good for line in written)


@pytest.mark.parametrize("kind", ["missing", "folder", "forbidden"])
def test_orders_that_cannot_be_read_are_a_mistake(job, tmp_path, kind, monkeypatch):
    path, rule = (
        tmp_path / "orders",
        {"missing": "no such file", "folder": "is a folder", "forbidden": "cannot be read"},
    )
    if kind == "folder":
        path.mkdir()
    if kind == "forbidden":  # root may read everything
        path.write_text("")
        opened = os.open

        def refuse(name, *rest):
            if name == str(path):
                raise PermissionError(13, "Permission denied")
            return opened(name, *rest)

        monkeypatch.setattr(os, "open", refuse)
    assert rule[kind] in job.fails("model=nano", "plan=timestep", f"control={path}")
