"""A session's camera: what its chunks showed is made again from the journal and from a recording, to the bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conf.errors import UserError
from runtime import journal
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.ends import LiveEnds
from runtime.filmed import RecordedFrames
from runtime.inputs import Inputs, InputsSink
from runtime.journal import Journal, Line
from runtime.video import VideoChunk
from stages.sources.film import NONE, Shots
from stages.sources.fitting import Fit
from stages.sources.live import Stop, Turned
from tests.helpers import config_of
from tests.patience import PATIENT_S
from tests.runtime.test_session_replay import taken
from tests.runtime.test_video_input import Cut, same
from tests.serve.core_ends import End
from tests.serve.seen import jpeg

SMALL = ("model=nano_video", "stream.height=32", "stream.width=32")
CONFIG = config_of(*SMALL, "sink.video=null", "source.pace=free")
ENCODERS = Encoders(CONFIG.model, torch.device("cpu"))
FPS, COUNT, FIT = 16, 12, Fit(32, 32)


def opened(end: End | None, folder, ends: LiveEnds | None, state: Cut | None = None, **settings) -> Conditioning:
    """The stream of a session, or of other sources."""
    sink = replace(CONFIG.sink, inputs=settings.pop("record", None))
    source = replace(CONFIG.source, session=end and end.address, **settings)
    return Conditioning(
        CONFIG.model, CONFIG.stream, source, ENCODERS, None, Stop(), state, sink,
        journal=Journal(folder) if folder else None, ends=ends,
    )  # fmt: skip


def show(end: End, conditioning: Conditioning, chunk: int) -> None:
    """A picture is taken for most frames of a chunk, and all have come when this returns."""
    rng = np.random.default_rng(chunk)
    for frame in range(COUNT):
        if rng.random() < 0.7:
            end.say("frame", jpeg(int(rng.integers(256))), at=(chunk * COUNT + frame) / FPS)
    taken(conditioning, end)


def sample(conditioning: Conditioning, chunk: int) -> VideoChunk:
    assert conditioning.chunk(chunk) is not None
    return conditioning.video_chunk(chunk)


def filmed(end: End, conditioning: Conditioning, chunks: range) -> list[VideoChunk]:
    made = []
    for chunk in chunks:
        show(end, conditioning, chunk)
        made.append(sample(conditioning, chunk))
    return made


@pytest.mark.parametrize("cut", [None, 2, 4])
def test_another_process_makes_again_what_was_sampled_and_holds_the_last_picture(tmp_path, cut):
    ends, cuts = LiveEnds(), {}
    with End() as end:
        first, made = opened(end, tmp_path, ends), []
        for chunk in range(4):
            cuts[chunk] = Cut(chunk, first.progress(chunk))
            made += filmed(end, first, range(chunk, chunk + 1))
        cuts[4] = Cut(4, first.progress(4))
        held = first.video.source.held
        first.stop.turn()
        first.turn()
        ends.leave()
    with End() as end:
        again = opened(end, tmp_path, LiveEnds(), cuts[cut] if cut else None)
        assert all(same(sample(again, chunk), made[chunk]) for chunk in range(cut or 0, 4))
        assert again.replay.next == 4
        taken(again, end)
        still = sample(again, 4)
        assert again.video.source.shots == Shots([held], [0] * COUNT), "no camera has come: it is held"
        assert not same(still, made[3])
        end.say("frame", jpeg(250), at=5000.0)
        end.say("frame", jpeg(20), at=5000.05)
        taken(again, end)
        sample(again, 5)
        assert jpeg(250) in again.video.source.shots.pictures and held in again.video.source.shots.pictures
        again.close()


def test_a_source_that_is_kept_gives_no_picture_twice_and_loses_none_that_was_taken(tmp_path):
    ends = LiveEnds()
    with End() as end:
        first = opened(end, tmp_path, ends)
        made = filmed(end, first, range(3))
        show(end, first, 3)
        expected = first.video.source.take(COUNT)  # for a chunk that does not come
        first.stop.turn()
        with pytest.raises(Turned):
            first.chunk(3)
        first.turn()
        again = opened(end, tmp_path, ends)
        assert all(same(sample(again, chunk), made[chunk]) for chunk in range(3))
        sample(again, 3)
        assert np.array_equal(again.video.source.shots.developed(FIT), expected)
        again.close()


def test_when_a_picture_came_is_when_its_control_was_accepted_and_is_told_with_the_chunk(tmp_path):
    with End() as end:
        one = opened(end, None, None)
        assert sample(one, 0) and one.accepted(0, 0.0) is None and one.video.accepted is None
        assert end.hear("sampled")[0]["frame"] is None
        show(end, one, 1)
        first = one.sources.session._camera._shots[0]
        sample(one, 1)
        assert one.accepted(1, 0.0) == one.video.accepted == first.came
        at, frame = end.hear("sampled")[0]["frame"]
        assert at == first.at
        assert one.video.source.shots.shown.index(0) == frame
        one.close()


def test_a_recording_makes_the_same_and_is_recorded_alike(tmp_path):
    with End() as end:
        one = opened(end, None, None, record=str(tmp_path / "inputs.jsonl"))
        sample(one, 0)
        made = filmed(end, one, range(1, 5))
        one.ended(5)
        one.close()
    assert (tmp_path / "inputs.jsonl").stat().st_mode & 0o777 == 0o600
    given = {"inputs": str(tmp_path / "inputs.jsonl")}
    with pytest.raises(UserError, match=r"source.fit=letterbox, this run has \d+x\d+ with crop; set stream.height="):
        opened(None, None, None, **given, fit="crop")
    again = opened(None, None, None, **given, record=str(tmp_path / "again.jsonl"))
    assert again.length() == 5 and again.video.length() == 5
    sample(again, 0)
    assert all(same(sample(again, chunk), made[chunk - 1]) for chunk in range(1, 5))
    assert again.chunk(5) is None
    again.ended(5)
    again.close()
    pictures = [
        [json.loads(line).get("pictures") for line in (tmp_path / name).read_text().splitlines()]
        for name in ("inputs.jsonl", "again.jsonl")
    ]
    assert pictures[0] == pictures[1] and pictures[0][0] == {"jpeg": [], "shown": [NONE] * COUNT}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"video": "a.mp4"}, "source.video=a.mp4: source.inputs brings pictures of its own"),
        ({"inputs": None}, "draws a video anew, and has none"),
    ],
)
def test_pictures_come_from_one_place(tmp_path, settings, told):
    sink = InputsSink(tmp_path / "inputs.jsonl")
    sink.chunk(0, None, None, None, Shots([], [NONE] * COUNT))
    sink.close()
    with pytest.raises(UserError, match=told):
        opened(None, None, None, **{"inputs": str(tmp_path / "inputs.jsonl")} | settings)


def recorded(folder, chunks: int) -> RecordedFrames:
    sink = InputsSink(folder / "inputs.jsonl")
    for chunk in range(chunks):
        sink.chunk(chunk, None, None, None, Shots([jpeg(10 * chunk)], [0] * COUNT))
    sink.close()
    return Inputs(folder / "inputs.jsonl").frames(FIT)


def test_a_recording_is_gone_on_with_from_any_chunk(tmp_path):
    whole, later = recorded(tmp_path, 4), recorded(tmp_path, 4)
    frames = [whole.take(COUNT) for _ in range(4)]
    assert whole.take(COUNT) is None and whole.count == 4 * COUNT
    later.skip(2 * COUNT)
    assert np.array_equal(later.take(COUNT), frames[2]) and not np.array_equal(frames[1], frames[2])


def test_a_recording_of_another_model_or_that_is_broken_is_one_line(tmp_path):
    with pytest.raises(UserError, match="chunk 0 was made of 12 pictures, and is to be made of 9"):
        recorded(tmp_path, 1).take(9)
    source = recorded(tmp_path, 1)
    (tmp_path / "inputs.jsonl").write_text('{"chunk": 0, "pictures": {"jpeg": ["AAAA"], "shown": [0]}}\n')
    with pytest.raises(UserError, match="the pictures of chunk 0 cannot be read"):
        source.take(COUNT)
    with pytest.raises(UserError, match="the pictures of chunk 0 cannot be read"):
        Inputs(tmp_path / "inputs.jsonl").frames(FIT).take(1)


def test_a_journal_keeps_as_much_of_a_camera_as_it_may(tmp_path, monkeypatch):
    """Beyond that the oldest lines go, whether a cut is whole or not: a loss then ends the stream, in one line."""
    monkeypatch.setattr(journal, "MOST_BYTES", 200_000)
    made = Journal(tmp_path)
    picture = bytes(10_000)
    for chunk in range(40):
        made.append(Line(chunk, shots=Shots([picture], [0])))
    kept = sum(path.stat().st_size for path in tmp_path.glob("journal.0*"))
    assert kept <= 200_000
    found = Journal(tmp_path)
    with pytest.raises(UserError, match="is not known any more"):
        found.lines(0)
    assert Journal(tmp_path).lines(36)[-1].shots == Shots([picture], [0])


def test_a_chunk_that_wants_other_pictures_than_before_is_a_fault(tmp_path):
    with End() as end:
        ends = LiveEnds()
        one = opened(end, tmp_path, ends)
        sample(one, 0)
        ends.again(Line(0, shots=Shots([], [NONE])))
        with pytest.raises(RuntimeError, match="chunk 0 wants other pictures"):
            ends.video.take(COUNT)
        ends.again(None)
        one.close()
        assert one.stop.wait(PATIENT_S)
