"""What a disk refuses is one line whichever file meets it, at every moment: opening, writing, closing."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conf import disk
from conf.errors import UserError
from runtime.report import write_json
from runtime.timeline_png import draw
from runtime.trace import Trace
from runtime.trace_file import join_traces
from stages.sinks.contact_sheet import ContactSheet
from stages.sinks.frames import FramesSink
from stages.sinks.latents import LatentsSink
from stages.sinks.video import VideoSink

PICTURES = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
GIVEN = Path()
LATENTS = torch.zeros(1, 4, 3, 16, 16)


def video(path):
    sink = VideoSink(path, 16, 64, 64)
    yield
    for _ in range(4):
        sink.write(PICTURES)
        yield
    sink.close()


def latents(path):
    sink = LatentsSink(path)
    yield
    for _ in range(4):
        sink.write(LATENTS)
        yield
    sink.close()


def frames(path):
    sink = FramesSink(path.parent)
    yield
    for _ in range(4):
        sink.write(PICTURES)
        yield
    sink.close()


def contact_sheet(path):
    sink = ContactSheet()
    yield
    sink.add(PICTURES)
    yield
    sink.save(path)


def packed():
    trace = Trace(keep="recent")
    trace.add("step0", 0, trace.clock(), 0.1)
    return trace.pack()


def timeline(path):
    yield
    draw(GIVEN, path)


@pytest.fixture(autouse=True)
def given(tmp_path_factory, monkeypatch):
    """A trace to draw, elsewhere."""
    path = tmp_path_factory.mktemp("given") / "trace.json"
    path.write_text(json.dumps({"name": "step0", "ph": "X", "tid": 0, "ts": 5, "dur": 1, "args": {"chunk": 0}}))
    monkeypatch.setattr(sys.modules[__name__], "GIVEN", path)


def every_span(path):
    trace = Trace("worker0", 0, "all", path)
    yield
    for chunk in range(200):
        trace.add("step0", chunk, trace.clock(), 0.1)
    yield
    trace.close()
    join_traces(path.parent, [trace.pack()])


def trace(path):
    yield
    join_traces(path.parent, [packed()])


def report(path):
    yield
    write_json(path, {"fps": 16})


def config(path):
    yield
    disk.write_text(f"output_dir={path.parent}", path, "model: nano\n")


FILES = {
    "sink.video": (video, "a.mp4"),
    "sink.latents": (latents, "a.safetensors"),
    "sink.frames": (frames, "frame.00000000.png"),
    "sink.contact_sheet": (contact_sheet, "a.png"),
    "sink.timeline": (timeline, "a.png"),
    "output_dir trace.": (every_span, "trace.0.part"),
    "output_dir trace.json": (trace, "trace.json"),
    "output_dir report.json": (report, "report.json"),
    "output_dir config.yaml": (config, "config.yaml"),
}
EVERY_SPAN = "output_dir trace."
"""Its part file, or what that is joined to, whichever is refused first."""
every = pytest.mark.parametrize("name", FILES)


@contextmanager
def one_line(name: str):
    """The work ends with a user's error of one line that names the setting, and the file where it does not."""
    setting, _, file = name.partition(" ")
    with pytest.raises(UserError) as error:
        yield
    line = str(error.value)
    assert line.startswith(f"{setting}=") and "\n" not in line and f": {file}" in line and "cannot be written (" in line


def run(work) -> None:
    for _ in work:
        pass


@pytest.mark.parametrize("name", [*(name for name in FILES if name.startswith("sink.")), EVERY_SPAN])
def test_its_folder_is_made(tmp_path, name):
    work, file = FILES[name]
    path = tmp_path / "new" / "deep" / file
    run(work(path))
    assert path.exists() or (path.parent / "trace.json").exists()


@every
def test_a_file_where_its_folder_should_be(tmp_path, name):
    work, file = FILES[name]
    (tmp_path / "file").write_text("")
    with one_line(name):
        run(work(tmp_path / "file" / file))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@every
def test_a_folder_that_vanishes_at_any_moment(tmp_path, name):
    work, file = FILES[name]
    moments = sum(1 for _ in work(_folder(tmp_path / "whole") / file))
    for moment in range(moments):
        folder = _folder(tmp_path / f"folder{moment}")
        under_way = work(folder / file)
        for _ in range(moment + 1):
            next(under_way)
        shutil.rmtree(folder)
        folder.write_text("")  # nor can it be made again
        if name in ("sink.frames", "sink.latents") and moment == moments - 1:
            run(under_way)  # all was written before, and nothing is at the end
            continue
        with one_line(name):
            run(under_way)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


class Full:
    """A disk on which files cannot grow beyond `room` bytes."""

    def __init__(self):
        self.resource = pytest.importorskip("resource")
        self.limits = self.resource.getrlimit(self.resource.RLIMIT_FSIZE)

    @contextmanager
    def __call__(self, room: int):
        self.resource.setrlimit(self.resource.RLIMIT_FSIZE, (room, self.limits[1]))
        try:
            yield
        finally:
            self.resource.setrlimit(self.resource.RLIMIT_FSIZE, self.limits)


@every
def test_a_full_disk_leaves_nothing_half_written(tmp_path, name):
    work, file = FILES[name]
    folder = _folder(tmp_path / "folder")
    with one_line(name), Full()(0):
        run(work(folder / file))
    assert [p.name for p in folder.iterdir()] == (["trace.0.part"] if name == EVERY_SPAN else [])


def test_what_was_written_before_the_disk_was_full_can_be_read(tmp_path):
    with one_line("sink.latents"), Full()(80_000):
        run(latents(tmp_path / "a.safetensors"))
    assert list(load_file(tmp_path / "a.safetensors")) == ["chunk.000000"]
    with one_line("sink.frames"), Full()(12_000):
        sink = FramesSink(tmp_path)
        sink.write(np.zeros((3, 64, 64, 3), np.uint8))
        sink.write(PICTURES)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"frame.{i:08d}.png" for i in range(3)]


PIPES = {
    "sink.video": ["a.mp4"],
    "sink.latents": ["a.safetensors"],
    "sink.frames": ["frame.00000000.png.part"],
    "sink.contact_sheet": ["a.png", "a.png.part"],
    "sink.timeline": ["a.png", "a.png.part"],
}


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_is_refused_not_waited_for(tmp_path, name):
    """Neither as the file itself, nor as the one beside it that takes its place; without a reader opening it waits."""
    work, file = FILES[name]
    for pipe in PIPES[name]:
        os.mkfifo(pipe := tmp_path / pipe)
        with one_line(name):
            run(work(tmp_path / file))
        assert list(tmp_path.iterdir()) == [pipe] and pipe.is_fifo()
        pipe.unlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("name", ["sink.video", "sink.latents", "sink.contact_sheet", "sink.timeline", EVERY_SPAN])
def test_a_device_is_not_removed(tmp_path, name):
    work, file = FILES[name]
    (tmp_path / file).symlink_to("/dev/full")
    with one_line(name):
        run(work(tmp_path / file))
    assert (tmp_path / file).is_symlink() and Path("/dev/full").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), disk.replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with disk.replacing(path) as aside:
        aside.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]
