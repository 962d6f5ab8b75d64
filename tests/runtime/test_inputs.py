"""What was sampled for each chunk drives another run to the same latents."""

import json
import os
import threading

import pytest

from conf.errors import UserError
from runtime import inputs
from runtime.inputs import Inputs, InputsSink
from tests.runtime.test_worker import local_run


def live(tmp_path, *overrides: str) -> dict:
    """A stream driven by sound through a pipe, its inputs recorded."""
    reading, writing = os.pipe()

    def speak() -> None:
        for part in range(25):
            os.write(writing, bytes(range(part, part + 200)) * 20)
        os.close(writing)

    with os.fdopen(reading, "rb") as stdin:
        given = ("source.audio=-", "source.pace=free", f"sink.inputs={tmp_path / 'inputs.jsonl'}")
        engine = local_run(tmp_path, "plan.workers=2", *given, *overrides, stdin=stdin)
        threading.Thread(target=speak).start()
        engine.wait()
    return engine.pipeline.report(0)


def test_a_recording_gives_the_same_hash_under_any_plan(tmp_path, nano):
    report = live(tmp_path, "stream.prompt=hello", "stream.events=[{chunk: 1, prompt: other}]")
    assert report["chunks"] >= 3
    lines = [json.loads(line) for line in (tmp_path / "inputs.jsonl").read_text().splitlines()]
    assert [line.get("chunk") for line in lines] == [*range(report["chunks"]), None]
    assert lines[-1] == {"end": report["chunks"]}
    assert [line.get("prompt") for line in lines[:3]] == ["hello", "other", None]
    again = f"source.inputs={tmp_path / 'inputs.jsonl'}"
    assert nano(again) == nano(again, "plan=layers", "plan.workers=2") == report["latents_sha256"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"chunk":0,"prompt":"a"}\n{"chunk":1}\n{"chu')
    found = Inputs(path)
    assert (found.chunks, found.prompts) == (2, {0: "a"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no chunk"),
        ("[1]\n", "line 1: is no line of inputs"),
        ('{"chunk":0,"prompt":5}\n', "line 1: is no line of inputs"),
        (
            '{"chunk":0,"views":{"poses":[[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]],"intrinsics":[[1,1,1,1]]}}\n',
            "has another last",
        ),
        ('{"chunk": 4}\n', "chunk 4 where 0 is due"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, text, complaint):
    path = tmp_path / "inputs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        Inputs(path)


def test_a_line_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LONGEST_LINE", 40)
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"chunk":0,"prompt":"a"}\n{"chunk":1,"prompt":"' + "a" * 40)
    with pytest.raises(UserError, match="line 2: is longer than 40 bytes"):
        Inputs(path)


def test_who_goes_on_makes_later_lines_anew(tmp_path):
    """Of a run that was killed behind the state it is gone on from; nothing is touched before the first of them."""
    path = tmp_path / "inputs.jsonl"
    lines = [f'{{"chunk":{chunk},"prompt":"{chunk}"}}\n' for chunk in range(6)]
    path.write_text("".join(lines) + '{"end":6}\n{"chu')
    sink = InputsSink(path, first=4)
    assert path.read_text().startswith("".join(lines))
    for chunk in (4, 5):
        sink.chunk(chunk, f"new {chunk}", None, None)
    sink.close()
    found = Inputs(path)
    assert found.prompts == {**{chunk: str(chunk) for chunk in range(4)}, 4: "new 4", 5: "new 5"}
    InputsSink(path).close()
    assert Inputs(path).chunks == 6


def test_what_people_said_is_for_this_user_alone(tmp_path):
    for private in (True, False):
        sink = InputsSink(tmp_path / f"{private}.jsonl", private=private)
        sink.chunk(0, "a", None, None)
        sink.close()
        assert (sink.path.stat().st_mode & 0o077 == 0) == private


@pytest.mark.parametrize("device", [True, False])
def test_a_sink_that_is_no_file(tmp_path, device):
    path = tmp_path / "inputs.jsonl"
    path.symlink_to("/dev/null") if device else os.mkfifo(path)
    with pytest.raises(UserError, match=r"sink.inputs=.*: cannot be written \(it is no file but a (device|pipe)\)"):
        InputsSink(path)


def test_sources_beside_a_recording_are_refused(tmp_path, job):
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"chunk":0}\n')
    line = job.fails("model=nano", f"source.inputs={path}", "source.actions=-")
    assert "source.inputs brings its own" in line
