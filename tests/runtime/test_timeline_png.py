"""The picture of a pipeline: what it shows, and that half a trace is enough."""

import json

import pytest
from PIL import Image

from conf.errors import UserError
from runtime.timeline_png import ACCENT, colour, draw, read, shown
from runtime.trace import Trace
from runtime.trace_file import join_traces


@pytest.fixture
def trace(tmp_path):
    """Three workers: a prefill on each, then twelve chunks of two steps and a decode; nothing for 5 s before."""
    traces = []
    for worker in range(3):
        t = Trace(f"worker{worker}", worker, "recent", clock=lambda: 120.0)
        t.add("wait", -1, 100.0, 5.0 + worker)
        if worker < 2:
            t.add("prefill", 0, 105.0, 0.5)
        for chunk in range(12):
            start = 105.5 + chunk + worker
            t.add(("step0", "step1", "decode")[worker], chunk, start, 0.9)
            t.add("send", chunk, start + 0.9, 0.05)
        traces.append(t.pack())
    return join_traces(tmp_path, traces)


def colours(png) -> set:
    with Image.open(png) as image:
        return {c for _, c in image.getcolors(1 << 20)}


def test_it_shows_filling_and_running(trace, tmp_path):
    names, boxes = read(trace)
    assert list(names.values()) == ["worker0", "worker1", "worker2"]
    assert shown(boxes, None) == pytest.approx((5.0, 5.5 + 7 + 2 + 0.9))
    draw(trace, tmp_path / "new" / "t.png")
    found = colours(tmp_path / "new" / "t.png")
    assert {ACCENT, colour("step0", 2), colour("step1", 2), colour("decode", 2), colour("wait", 2)} <= found


def test_a_given_time(trace, tmp_path):
    assert shown(read(trace)[1], 0.4) == pytest.approx((5.0, 5.4))
    draw(trace, tmp_path / "t.png", first_s=0.4)
    # Only prefills so far; the rest is in the legend alone.
    with Image.open(tmp_path / "t.png") as image:
        below = image.crop((0, 120, image.width, image.height))
        assert colour("decode", 2) not in {c for _, c in below.getcolors(1 << 20)}


def test_steps_are_told_apart():
    for steps in (1, 2, 4, 50):
        assert len({colour(f"step{i}", steps) for i in range(steps)}) == steps
    assert colour("something new", 4)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.0])
def test_a_trace_that_was_cut(trace, tmp_path, share):
    whole = trace.read_bytes()
    trace.write_bytes(whole[: int(len(whole) * share)])
    draw(trace, tmp_path / "t.png")
    assert Image.open(tmp_path / "t.png").size[0] > 1000


def test_blocks_of_a_step_share_its_colour(tmp_path):
    event = {"name": "step1.block0", "ph": "X", "pid": 0, "tid": 4, "ts": 5, "dur": 10, "args": {"chunk": 2}}
    path = tmp_path / "trace.json"
    path.write_text("[\n" + json.dumps(event) + "\n]\n")
    names, boxes = read(path)
    assert names == {4: "track 4"}
    assert boxes[0].stage == "step1"
    assert boxes[0].end == pytest.approx(1e-5)


def test_a_picture_that_cannot_be_written(trace, tmp_path):
    with pytest.raises(UserError, match=r"sink\.timeline=.*: cannot be written"):
        draw(trace, trace / "t.png")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("plan", ["sequential", "layers"])
def test_the_main_job_draws_it(job, plan, count):
    overrides = (f"plan={plan}", f"stream.count={count}", "stream.chunks=3")
    job("model=nano", "sink.video=null", "sink.timeline=${output_dir}/timeline.png", *overrides)
    assert colour("step3", 4) in colours(job.folder / "timeline.png")
