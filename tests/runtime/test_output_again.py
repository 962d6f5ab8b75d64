"""An output that is given chunks again, and one that goes on for another: all is as if nothing had been."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from runtime.encoders import frames_of
from runtime.orders import Open
from runtime.output import Output, Sidecar
from runtime.outputs import open_outputs
from runtime.report import Timeline
from runtime.trace import Trace
from serve.media import Packet
from serve.seen import Seen
from stages.inputs import REFERENCE
from stages.sinks.reader import AHEAD, Reader
from tests.helpers import config_of
from tests.patience import PATIENT_S
from tests.serve.core_ends import Clock, End

CHUNKS, CUT = 8, 3


def given(model, chunk: int) -> tuple[torch.Tensor, torch.Tensor, Sidecar]:
    """A chunk's latents, pictures and what goes with it."""
    draws = torch.Generator().manual_seed(chunk)
    (before, count), each = frames_of(model, chunk), 16_000 // model.fps
    sound = torch.sin(torch.arange(before * each, (before + count) * each) / 7)
    return (
        torch.randn((1, 4, model.chunk_frames, 4, 4), generator=draws),
        torch.randn((1, 3, 1, 8, 8), generator=draws).repeat_interleave(8, 3).repeat_interleave(8, 4).clamp(-1, 1)
        * torch.linspace(0.2, 1, count)[:, None, None],
        Sidecar(0.0, sound=0.5 * sound, lasting={"sink.motion": torch.zeros(1)}),
    )


class Run:
    """One stream's files in a folder, and outputs that make them, one after the other."""

    def __init__(self, folder: Path, *overrides: str, **sinks: str):
        files = {"latents": "a.safetensors", "video": "a.mp4", "frames": "frames"}
        named = [f"sink.{name}={folder / file}" for name, file in files.items()]
        self.config = config_of("model=pocket_avatar", "source.image=assets/portrait.png", *named, *overrides)
        self.folder, self.sinks = folder, sinks
        for name, value in sinks.items():
            setattr(self.config.sink, name, value)
        self.counters: dict[int, Any] = {}

    def output(self, cut: int | None = None) -> Output:
        """One that begins, or goes on from a cut."""
        config = self.config
        state = cut and SimpleNamespace(
            chunk=cut, output=({}, self.counters[cut]), video=(self.folder / "a.mp4").absolute(), anchor={}, content={}
        )
        made = (cut, frames_of(config.model, cut)[0]) if cut else (0, 0)
        keep = SimpleNamespace(
            state=state, first=made[0], frames=made[1], mark="ours", folder=str(self.folder), resume=None, cut=None
        )
        order = Open(0, config.stream, config.source, config.sink, keep)
        trace = Trace()
        timeline = Timeline(config.model.fps, trace.clock, *made)
        return Output(config.stream, config.model, partial(open_outputs, config, order), timeline, trace, keep, True)

    def write(self, output: Output, chunks: range) -> None:
        for chunk in chunks:
            output.open()
            if chunk == output.next:
                self.counters[chunk] = output.outputs.progress()[0]
            output.write(chunk, *given(self.config.model, chunk))

    def result(self, output: Output) -> dict[str, Any]:
        """All that a stream has left behind."""
        with av.open(str(self.folder / "a.mp4")) as video:
            pictures = [(one.pts, one.to_ndarray(format="rgb24")) for one in video.decode(video=0)]
        beside = sorted(path.name for path in self.folder.iterdir())
        return {
            "hash": output.outputs.hash.hexdigest,
            "latents": (self.folder / "a.safetensors").read_bytes(),
            "frames": {path.name: path.read_bytes() for path in (self.folder / "frames").iterdir()},
            "times": [pts for pts, _ in pictures],
            "beside": beside,
        } | {"pictures": np.stack([picture for _, picture in pictures]).astype(int)}


def same(one: dict[str, Any], other: dict[str, Any], coded: int) -> None:
    """Whether two are the same, but for what an encoder makes of pictures."""
    assert np.abs(one.pop("pictures") - other.pop("pictures")).max() <= coded
    assert one == other


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    output = run.output()
    run.write(output, range(CHUNKS))
    output.close()
    return run.result(output)


def test_chunks_that_come_again_are_not_put_out_again(tmp_path, undisturbed):
    run, told = Run(tmp_path), []
    output = run.output()
    run.write(output, range(5))
    frames = output.timeline.frames
    for begin in (3, 0):
        output.resumed = told.append
        run.write(output, range(begin, 5))
        assert output.next == 5 and output.timeline.frames == frames and told == []
    run.write(output, range(3, CHUNKS))
    output.close()
    assert told == [5] and output.resumed is None
    same(run.result(output), dict(undisturbed), 0)


def test_another_goes_on_from_a_cut_after_the_first_was_let_go(tmp_path, undisturbed):
    run = Run(tmp_path)
    first = run.output()
    run.write(first, range(CUT + 2))
    first.leave()
    with av.open(str(tmp_path / "a.mp4")) as left:  # it plays as it is
        assert sum(1 for _ in left.decode(video=0)) == frames_of(run.config.model, CUT + 2)[0]
    second, told = run.output(CUT), []
    second.resumed = told.append
    run.write(second, range(CUT, CUT + 3))
    second.leave()
    third = run.output(CUT + 1)
    run.write(third, range(CUT + 1, CHUNKS))
    third.close()
    assert told == [CUT] and third.timeline.frames == frames_of(run.config.model, CHUNKS)[0]
    same(run.result(third), dict(undisturbed), 60)


def test_another_goes_on_from_the_same_cut_while_the_first_still_has_its_files(tmp_path, undisturbed):
    run = Run(tmp_path)
    first = run.output()
    run.write(first, range(CUT + 1))
    first.leave()
    second = run.output(CUT)
    run.write(second, range(CUT, CUT + 2))
    third = run.output(CUT)  # the process of the second is as good as gone
    run.write(third, range(CUT, CHUNKS))
    second.outputs._video.close()
    third.close()
    same(run.result(third), dict(undisturbed), 60)


def test_an_anchor_that_does_not_hold_yet_is_kept_when_its_chunk_comes_again(tmp_path):
    run = Run(tmp_path, "model.recalibrate_chunk=4")
    output = run.output()
    run.write(output, range(2))
    anchor = dict(output._anchor)
    assert REFERENCE in anchor
    run.write(output, range(2))
    assert anchor.keys() == output._anchor.keys()
    assert all(torch.equal(tensor, output._anchor[name]) for name, tensor in anchor.items())
    output.close()


def test_a_cut_is_ready_once_all_before_it_has_been_taken_by_who_watches(tmp_path):
    reader = Reader("127.0.0.1")
    run = Run(tmp_path, reader=reader.address)
    output, cut = run.output(), threading.Event()
    run.write(output, range(AHEAD))
    output._cut = cut
    output._settle()  # the video is on disk
    assert not cut.is_set()
    assert reader.next(lambda: False).index == 0
    run.write(output, range(AHEAD, AHEAD + 1))
    assert not cut.is_set()
    assert reader.next(lambda: False).index == 1
    run.write(output, range(AHEAD + 1, AHEAD + 2))
    assert cut.is_set()
    other = threading.Event()
    output._cut = other
    output.leave()
    assert not other.is_set()  # what has not left dies with it
    reader.close()


def test_without_anybody_who_watches_it_is_ready_at_once(tmp_path):
    run = Run(tmp_path)
    output, cut = run.output(), threading.Event()
    run.write(output, range(1))
    output._cut = cut
    output._settle()
    assert cut.is_set()
    output.close()


def test_a_reader_takes_every_chunk_once_whoever_gives_it(tmp_path):
    reader, taken = Reader("127.0.0.1"), []
    run = Run(tmp_path, reader=reader.address)
    over = threading.Event()

    def read() -> None:
        while (chunk := reader.next(over.is_set)) is not None:
            taken.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    first = run.output()
    run.write(first, range(CUT + 2))
    first.leave()
    second = run.output(CUT)
    run.write(second, range(CUT, CHUNKS))
    second.close()
    thread.join(PATIENT_S)
    assert not thread.is_alive() and [chunk.index for chunk in taken] == list(range(CHUNKS))
    other = Reader("127.0.0.1")
    (tmp_path / "other").mkdir()
    whole, expected = Run(tmp_path / "other", reader=other.address), []
    writing = threading.Thread(target=lambda: (whole.write(made := whole.output(), range(CHUNKS)), made.close()))
    writing.start()
    while (chunk := other.next(over.is_set)) is not None:
        expected.append(chunk)
    writing.join(PATIENT_S)
    for one, two in zip(taken, expected, strict=True):
        assert np.array_equal(one.frames, two.frames) and np.array_equal(one.sound, two.sound)


def test_viewers_see_one_stream_whoever_plays_it(tmp_path):
    seen, heard = Seen(Clock()), []

    def listen(end: End) -> None:
        while (message := end.hear()) is not None:
            head, body = message
            heard.append(head | {"body": body})
            if head["kind"] == "chunk":
                seen.chunk(head)
            elif head["kind"] == "start":
                seen.start(head["fps"])
            elif head["kind"] in ("video", "sound"):
                codec = head.get("codec", "opus")
                seen.packet(Packet(head["kind"], codec, body, head["pts"], head.get("key", False), head["chunk"]))

    def connected(run: Run, end: End, cut: int | None, **hello: Any) -> tuple[Output, threading.Thread]:
        run.config.sink.session, output = end.address, run.output(cut)
        greeting = threading.Thread(target=lambda: end.say("hello", margin_s=0.05, **hello))
        greeting.start()
        output.open()
        greeting.join(PATIENT_S)
        end.say("want", codecs=["h264"], thin=[])
        ears = threading.Thread(target=listen, args=(end,))
        ears.start()
        return output, ears

    run = Run(tmp_path)
    with End(hello=None) as one:
        first, ears = connected(run, one, None)
        run.write(first, range(3))
        cut = min(3, first.outputs.seen)  # of the chunks before it all has left
        first.leave()
        ears.join(PATIENT_S)
    left = [head for head in heard if head["kind"] == "video"]
    assert left and not any(head["kind"] == "end" for head in heard)
    with End(hello=None) as two:
        second, ears = connected(run, two, cut or None, **seen.told())
        run.write(second, range(cut, 4))
        second.close()
        ears.join(PATIENT_S)
    last = frames_of(run.config.model, 4)[0]
    assert [head["chunk"] for head in heard if head["kind"] == "chunk"] == list(range(4))
    pictures = [head for head in heard if head["kind"] == "video"]
    assert [head["pts"] for head in pictures] == [round(i * 90_000 / run.config.model.fps) for i in range(last)]
    assert [i for i, head in enumerate(pictures) if head["key"]] == [0, len(left)]
    sounds = [head["pts"] for head in heard if head["kind"] == "sound"]
    assert sounds == [960 * i for i in range(len(sounds))]
    assert heard[-1]["kind"] == "end"
