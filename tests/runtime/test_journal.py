"""What was sampled is in the journal, to the bit, and no more than may be needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from runtime import journal
from runtime.journal import SEGMENT, Journal, Line
from runtime.replay import Replay

FLOATS = st.floats(-1, 1, width=32)
LINES = st.builds(
    Line,
    chunk=st.just(0),
    prompt=st.none() | st.text(max_size=20),
    accepted=st.floats(0, 1e9),
    number=st.integers(-1, 99),
    sound=st.none() | st.lists(FLOATS, max_size=9).map(lambda values: np.array(values, np.float32)),
    short=st.booleans(),
    actions=st.none() | st.lists(st.integers(0, 9), max_size=5),
    held=st.dictionaries(st.sampled_from(["held", "horizon"]), st.integers(), max_size=2),
    pressed=st.none() | st.floats(0, 1e9),
    events=st.lists(st.text(max_size=4), max_size=3),
    pace=st.none() | st.just({"_due": 1.5, "way": None}),
)


def same(a: Line, b: Line) -> bool:
    sounds = [None if line.sound is None else line.sound.tobytes() for line in (a, b)]
    return sounds[0] == sounds[1] and {**vars(a), "sound": 0} == {**vars(b), "sound": 0}


def filled(folder, chunks: range, **whole) -> Journal:
    made = Journal(folder, **whole)
    for chunk in chunks:
        made.append(Line(chunk))
    return made


def chunks_of(folder, first: int) -> list[int]:
    return [line.chunk for line in Journal(folder).lines(first)]


@settings(max_examples=30)
@given(st.lists(LINES, max_size=2 * SEGMENT + 1), st.data())
def test_what_is_read_is_what_was_written_whoever_wrote_it(tmp_path_factory, lines, data):
    folder = tmp_path_factory.mktemp("journal")
    writer, first = Journal(folder), Journal(folder)
    assert not writer.again and first.again and first.run == writer.run
    for chunk, line in enumerate(lines):
        line.chunk = chunk
        if data.draw(st.integers(0, 4)) == 0:
            writer.close()
            writer = Journal(folder)  # another process goes on
        writer.append(line)
    begin = data.draw(st.integers(0, len(lines)))
    found = Journal(folder).lines(begin)
    assert len(found) == len(lines) - begin
    assert all(same(a, b) for a, b in zip(found, lines[begin:], strict=True))


@pytest.mark.parametrize("torn", [1, 5, 30])
def test_a_line_that_was_torn_is_cut_off(tmp_path, torn):
    filled(tmp_path, range(3))
    [file] = tmp_path.glob("journal.0*")
    file.write_bytes(file.read_bytes()[:-torn])
    again = Journal(tmp_path)
    assert [line.chunk for line in again.lines(0)] == [0, 1]
    again.append(Line(2, prompt="anew"))
    assert [line.prompt for line in Journal(tmp_path).lines(0)] == [None, None, "anew"]


def test_lines_before_the_newest_whole_cut_go_a_file_at_a_time(tmp_path):
    whole = 0
    made = Journal(tmp_path, lambda: whole)
    for chunk in range(100 * SEGMENT):
        made.append(Line(chunk))
        whole = max(0, chunk - 3)
        assert len(list(tmp_path.glob("journal.0*"))) <= 3
    assert chunks_of(tmp_path, whole) == list(range(whole, 100 * SEGMENT))
    with pytest.raises(UserError, match="what was sampled from chunk 5 on is not known any more"):
        Journal(tmp_path).lines(5)


def test_it_is_bounded_where_no_cut_becomes_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_BYTES", 10_000)
    filled(tmp_path, range(40 * SEGMENT))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 11_000
    last = 40 * SEGMENT - 1
    assert chunks_of(tmp_path, last) == [last]


def test_nothing_is_known_of_a_chunk_that_comes_next(tmp_path):
    filled(tmp_path, range(4))
    assert chunks_of(tmp_path, 4) == []
    again = Replay(Journal(tmp_path), 4)
    assert (again.next, again.last, again.take(4)) == (4, None, None)


@pytest.mark.parametrize("lines", [0, 3])
def test_a_stream_that_had_ended_has_ended(tmp_path, lines):
    filled(tmp_path, range(lines)).ended(lines, stopped=True)
    again = Replay(Journal(tmp_path), 0)
    assert again.next == lines and again.over(lines) and again.end.stopped
    assert not Replay(Journal(tmp_path / "other"), 0).over(lines)


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"launcher.recover=exact: the journal in .*; make room there, or set"):
        Journal(tmp_path / "file" / "stream")


def test_a_picture_is_asked_of_whoever_knows_it(tmp_path):
    assert Replay(None, 0).picture(b"sent") == b"sent"
    assert Replay(Journal(tmp_path), 0).picture(b"sent") == b"sent"
    assert Replay(Journal(tmp_path), 0).picture(None) == b"sent"
