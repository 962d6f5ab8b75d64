"""Everframe from Python: what a program gets of streams, and what it tells them."""

import json
import re
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import everframe
from everframe.pipeline import _word
from launch.cli import CONF
from runtime.outputs import Outputs
from stages.sinks.reader import AHEAD
from stages.sources.audio_file import AudioFile
from tests.helpers import config_of
from tests.patience import PATIENT_S

README = Path(__file__).parents[2] / "README.md"
NANO = {"model": "nano", "plan": "timestep", "device": "cpu"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    with everframe.open(f"output_dir={tmp_path_factory.mktemp('run')}", "plan.workers=2", **NANO) as pipeline:
        yield pipeline


def inputs(path: Path) -> list[dict]:
    """What was sampled for each chunk of a stream."""
    whole = path.read_text().split("\n")[:-1]  # it may be in the middle of a line
    return [line for line in map(json.loads, whole) if "chunk" in line]


def test_chunks_are_what_files_get(pipeline, tmp_path, nano, speech):
    stream = pipeline.stream(audio=speech, chunks=2, seed=3, sink={"frames": str(tmp_path / "frames")})
    chunks = list(stream)
    written = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "frames").iterdir())]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), written)
    assert [(chunk.index, chunk.fps, chunk.frames.dtype) for chunk in chunks] == [(0, 16, np.uint8), (1, 16, np.uint8)]
    assert np.array_equal(np.concatenate([chunk.sound for chunk in chunks]), AudioFile(speech).read(24 * 1000))
    expected = nano("stream.chunks=2", "stream.seed=3", f"source.audio={speech}")
    assert stream.report["latents_sha256"] == expected
    assert stream.report["finished"] and stream.ended


def test_streams_of_one_name_are_one_video_and_open_ones_have_names_of_their_own(pipeline):
    first, second = pipeline.stream(chunks=1), pipeline.stream(chunks=1)
    assert (first.id, second.id) == ("0", "1")
    frames = [next(iter(stream)).frames for stream in (first, second)]
    for stream in (first, second):
        stream.report  # noqa: B018  it has ended then
    again = pipeline.stream(chunks=1)
    assert again.id == "0"
    assert np.array_equal(next(iter(again)).frames, frames[0]) and not np.array_equal(frames[1], frames[0])


def test_who_leaves_early_cancels(pipeline):
    stream = pipeline.stream()
    for chunk in stream:
        if chunk.index == 1:
            break
    assert stream.report["finished"] is False
    assert [chunk.index for chunk in pipeline.stream(chunks=3)] == [0, 1, 2]


def test_a_reader_that_takes_nothing_holds_up_its_own_stream_alone(pipeline):
    held = pipeline.stream()
    assert [chunk.index for chunk in pipeline.stream(chunks=8)] == list(range(8))
    progress = pipeline.running.pipeline.progress(held._number)
    assert progress is None or progress["chunks"] <= AHEAD
    held.close()
    assert held.report["finished"] is False
    assert list(held) == []


def test_a_stopped_stream_drains(pipeline):
    stream, seen = pipeline.stream(), []
    for chunk in stream:
        seen.append(chunk.index)
        stream.stop()
    assert seen == list(range(stream.report["chunks"])) and stream.report["finished"] is False
    stream.stop()
    stream.close()


def test_what_is_said_shows_in_chunks_to_come(pipeline, tmp_path):
    prompt = '"it\'s", (so) ${said}: Grüße = 你好, a\\b \\'
    stream = pipeline.stream(prompt=prompt, actions=everframe.LIVE, sink={"inputs": str(tmp_path / "in")})
    for chunk in stream:
        assert chunk.index < 200
        if chunk.index == 0:
            stream.act("left")
            stream.prompt(prompt[::-1])
        done = inputs(tmp_path / "in")
        if any("prompt" in line for line in done[1:]) and done[-1]["actions"] == [3] * 12:
            stream.stop()
    lines = inputs(tmp_path / "in")
    assert lines[0]["prompt"] == prompt and lines[0]["actions"] == [0] * 12
    assert [line["prompt"] for line in lines[1:] if "prompt" in line] == [prompt[::-1]]
    assert {tuple(line["actions"]) for line in lines} == {(0,) * 12, (3,) * 12}


def test_sound_is_heard_as_from_a_file(pipeline, nano, speech):
    expected = nano("stream.chunks=2", f"source.audio={speech}")
    stream = pipeline.stream(audio=everframe.LIVE, chunks=2)
    stream.hear(AudioFile(speech).read(32000))
    assert len(list(stream)) == 2
    assert stream.report["latents_sha256"] == expected


def test_what_is_wrong_with_a_stream_is_raised_where_it_is_read(pipeline, monkeypatch):
    with pytest.raises(everframe.UserError, match=r"source.image=/proc/nowhere.png: .*"):
        list(pipeline.stream(image="/proc/nowhere.png"))

    def broken(self, *rest):
        raise ValueError("a bug of a sink")

    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "pictures", broken)
        with pytest.raises(RuntimeError, match="a bug of a sink"):
            list(pipeline.stream(chunks=1))
    assert len(list(pipeline.stream(chunks=1))) == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"promt": "a cat"}, r"stream\.promt: there is no such key; did you mean prompt"),
        ({"prompt": 5}, r"stream\.prompt=5: must be text"),
        ({"sink": {"vidio": "a.mp4"}}, r"sink\.vidio: there is no such key; did you mean video"),
        ({"chunks": 0}, r"stream\.chunks=0: must be above zero"),
        ({"id": "a b"}, r"stream\.id="),
        ({"resume": "/proc/nowhere"}, r"resume=/proc/nowhere"),
    ],
)
def test_what_no_stream_can_be_is_refused_at_once(pipeline, settings, line):
    with pytest.raises(everframe.UserError, match=line):
        pipeline.stream(**settings)


def test_what_a_stream_does_not_take_is_refused(pipeline):
    stream = pipeline.stream(chunks=1)
    with pytest.raises(everframe.UserError, match=r"actions of stream 0: are not live; open it with actions="):
        stream.act("left")
    with pytest.raises(
        everframe.UserError, match=r'act\("lefft"\): model=nano does not know it; it knows none, forward'
    ):
        stream.act("lefft")
    with pytest.raises(everframe.UserError, match=r"act: keys=\['left', 'back'\]: the model knows one at a time"):
        stream.act(keys=["left", "back"])
    with pytest.raises(everframe.UserError, match=r"act: has no action"):
        stream.act()
    with pytest.raises(everframe.UserError, match=r"audio of stream 0: are not live"):
        stream.hear(np.zeros(1))
    list(stream)


@pytest.mark.parametrize(
    ("overrides", "settings", "line"),
    [
        ((), {"modle": "nano"}, r"modle=nano: there is no such key; did you mean model"),
        (("plan.workers=two",), {}, r"plan\.workers=two: must be a whole number of processes"),
        ((), {"launcher": "torchrun"}, r"launcher=torchrun: has a program in every rank"),
        (("control=-",), {}, r"control=-: is said of a whole run"),
        (
            ("model.checkpoint=assets/weights/none.safetensors",),
            {},
            r"assets/weights/none.safetensors: is neither here",
        ),
        (("model.checkpoint=/proc/nowhere",), {}, r"model\.checkpoint=/proc/nowhere: "),
    ],
)
def test_mistakes_in_what_is_opened_are_raised_there(overrides, settings, line):
    with pytest.raises(everframe.UserError, match=line):
        everframe.open(*overrides, **({} if "modle" in settings else {"model": "nano"}), **settings)


def test_workers_end_whatever_happens(tmp_path, monkeypatch):
    def read(stream):
        with suppress(RuntimeError):  # the workers may end before the stream has
            list(stream)

    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), everframe.open(**NANO) as pipeline:
        pipeline.stream()
        thread = threading.Thread(target=read, args=(pipeline.stream(),))
        thread.start()
        1 / 0  # noqa: B018
    thread.join(timeout=PATIENT_S)
    assert not thread.is_alive()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("worker-")]
    with pytest.raises(RuntimeError):
        pipeline.stream()
    pipeline.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["nano", "a/b.c-d", "null", "1e3", "it's", "a 'b' \\' c\\", "x=(1, [2]: {3}", "\\", ""]
)
def test_text_is_spelled_as_the_command_line_reads_it(text):
    told = config_of("model=nano", f"stream.prompt={_word(text)}", f"model.text.words={_word([text])}")
    assert (told.stream.prompt, told.model.text.words) == (text, [text])


def test_values_are_spelled_as_the_command_line_reads_them():
    config = config_of("model=nano", f"stream.seconds={_word(0.5)}", f"sink.video={_word(None)}")
    assert (config.stream.seconds, config.sink.video) == (0.5, None)
    config = config_of("model=nano", f"model.reference={_word(False)}", f"plan.steps={_word([2, 1, 1])}")
    assert (config.model.reference, config.plan.steps) == (False, [2, 1, 1])
    config = config_of("model=nano", f"stream.events={_word([{'chunk': 1, 'prompt': 'a, b'}])}")
    assert (config.stream.events[0].chunk, config.stream.events[0].prompt) == (1, "a, b")


@pytest.mark.long
@pytest.mark.parametrize("overrides", [("launcher.threads=false",), ("launcher=ray",)], ids=" ".join)
def test_chunks_come_from_other_processes(tmp_path, pipeline, overrides):
    here = [chunk.frames for chunk in pipeline.stream(chunks=3)]
    with everframe.open(*overrides, "plan.workers=2", f"output_dir={tmp_path}/run", **NANO) as there:
        stream = there.stream(chunks=3, actions=everframe.LIVE)
        chunks = [chunk.frames for chunk in stream]
    assert np.array_equal(np.concatenate(chunks), np.concatenate(here))
    assert not (tmp_path / "run").exists()  # where no file was asked for, none is left, and no folder


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"<!-- python -->\n(.*?)<!-- /python -->", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(line.removeprefix("    ") for line in lines.splitlines()), str(README), "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "0 (12, 64, 64, 3) 12000"
    assert re.fullmatch("[0-9a-f]{64}", shown[-1])
    assert CONF.is_dir() and not list(tmp_path.iterdir())
