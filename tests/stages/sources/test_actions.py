"""Actions: a file and a pipe agree, "now" is never awaited, and a wrong line says which one it is."""

import io
import json
import logging
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from stages.sources import live
from stages.sources.actions import AHEAD, ActionFile, LiveActions
from stages.sources.lines import HELD, LONGEST_LINE
from stages.sources.live import LiveBytes, named_pipe
from tests.patience import PATIENT_S
from tests.stages.sources.blocked import Blocked, settle

ACTIONS = ("none", "forward", "back", "left", "right")
NONE, FORWARD, BACK, LEFT, RIGHT = range(5)


def line(action, frame=None):
    return json.dumps({"action": action} if frame is None else {"frame": frame, "action": action}) + "\n"


def action_file(tmp_path, text):
    path = tmp_path / "actions.jsonl"
    path.write_text(text)
    return path


@pytest.fixture
def pipe():
    """A live source and a function that writes to it (None closes the writing end)."""
    reading, writing = os.pipe()
    stop, open_ends = threading.Event(), {writing}

    def write(text):
        if text is None:
            open_ends.clear()  # first: a timer's thread may run into the end of the test
            os.close(writing)
        else:
            os.write(writing, text.encode())

    with open(reading, "rb") as stream:  # noqa: PTH123 (a descriptor)
        source = LiveActions(stream, ACTIONS, stop)
        source.stop = stop
        yield source, write
        source.close()
    for end in open_ends:
        os.close(end)


def test_an_action_holds_until_it_is_changed(tmp_path):
    source = ActionFile(action_file(tmp_path, line("left", 2) + "\n" + line("none", 5) + line("right", 6)), ACTIONS)
    assert source.take(0, 4) == [NONE, NONE, LEFT, LEFT] and not source.ended
    assert source.take(4, 4) == [LEFT, NONE, RIGHT, RIGHT] and source.ended
    assert source.take(10**12, 2) == [RIGHT, RIGHT]
    source.close()


def test_the_last_of_several_lines_for_a_frame_wins_and_frames_may_be_skipped(tmp_path):
    source = ActionFile(action_file(tmp_path, line("left", 1) + line("right", 1) + line("back", 3)), ACTIONS)
    assert source.take(1, 1) == [RIGHT] and source.take(9, 1) == [BACK]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_of_no_line_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="holds no line; give a file of lines like"):
        ActionFile(action_file(tmp_path, text), ACTIONS)


@settings(max_examples=25)
@given(
    lines=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(ACTIONS)), min_size=1, max_size=12),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_a_pipe_gives_exactly_what_the_same_file_gives(tmp_path_factory, lines, counts):
    """And for as long: what was said last is still shown."""
    frame, text = 0, ""
    for gap, action in lines:
        frame += gap
        text += line(action, frame)
    path = action_file(tmp_path_factory.mktemp("actions"), text)
    of_file, of_pipe = ActionFile(path, ACTIONS), LiveActions(io.BytesIO(text.encode()), ACTIONS)
    first = 0
    for count in counts:
        made = not of_file.ended
        assert of_file.take(first, count) == of_pipe.take(first, count)
        assert made == (not of_pipe.ended or of_pipe.fresh)
        first += count
    of_file.close()
    of_pipe.close()


@pytest.mark.parametrize(
    "text, message",
    [
        (line("none", 0) + "nonsense\n", "line 2: is not JSON"),
        ("[1, 2]\n", "line 1: has no action"),
        ('{"frame": 3}\n', "line 1: has no action"),
        (
            line("left", 0) + '{"frame": 3, "action": "left", "mosue": [0, 1]}\n',
            'line 2: "mosue": is nothing that a line says',
        ),
        (line("forward"), "line 1: has no frame"),
        (line("forwrd", 1), "action=forwrd: the model does not know it; did you mean forward?"),
        ('{"frame": 1, "action": ["left"]}\n', "the model does not know it"),
        (line("left", -1), "frame=-1: a frame is an integer from 0 on"),
        ('{"frame": 1.5, "action": "left"}\n', "frame=1.5: a frame is an integer"),
        ('{"frame": true, "action": "left"}\n', "frame=True"),
        (line("left", 5) + "\n" + line("left", 4), "line 3: frame=4: comes after frame 5"),
        ("x" * 10000, "line 1: is longer than 4096 bytes"),
        ("[" * 4000, "line 1: is not JSON"),
    ],
)
def test_a_wrong_line_in_a_file(tmp_path, text, message):
    path = action_file(tmp_path, text)
    with pytest.raises(UserError) as error:
        ActionFile(path, ACTIONS)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"source.actions={path} line ")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\n")
    for path, message in (
        ("missing", "no such file"),
        (".", "is no file but a folder"),
        ("binary", "line 1: is not JSON"),
    ):
        with pytest.raises(UserError, match=message):
            ActionFile(tmp_path / path, ACTIONS)


def test_stamped_lines_are_awaited(pipe):
    source, write = pipe
    write(line("left", 1))
    waiting = Blocked(source._bytes, lambda: source.take(0, 4), len(line("left", 1)))
    assert waiting(lambda: write(line("right", 4))) == [NONE, LEFT, LEFT, LEFT]
    waiting = Blocked(source._bytes, lambda: source.take(4, 2))
    assert waiting(lambda: write(None)) == [RIGHT, RIGHT] and source.ended and source.fresh
    assert source.take(6, 2) == [RIGHT, RIGHT] and not source.fresh


def test_now_is_applied_to_the_next_take_and_never_awaited(pipe):
    source, write = pipe
    first = Blocked(source._bytes, lambda: source.take(0, 2))  # waits for the first line
    assert first(lambda: write(line("forward"))) == [FORWARD, FORWARD]
    asked, take = [], source._bytes.take
    source._bytes.take = lambda least, most: (asked.append(least), take(least, most))[1]
    assert source.take(2, 2) == [FORWARD, FORWARD] and set(asked) == {0}  # bytes that it would wait for
    keys = line("left") + line("back")
    write(keys)
    settle(source._bytes, len(keys))
    assert source.take(4, 2) == [BACK, BACK] and not source.ended


def test_now_and_stamped_lines_together(pipe):
    source, write = pipe
    text = line("left", 0) + line("right", 6) + line("forward")
    write(text)
    settle(source._bytes, len(text))
    assert source.take(0, 4) == [FORWARD] * 4
    assert source.take(4, 4) == [FORWARD, FORWARD, RIGHT, RIGHT]


@pytest.mark.parametrize("by", ["stop", "close"])
def test_a_blocked_take_is_released(pipe, by):
    source, write = pipe
    write(line("left", 0))
    waiting = Blocked(source._bytes, lambda: source.take(0, 2), len(line("left", 0)))
    assert waiting(source.stop.set if by == "stop" else source.close) == [LEFT, LEFT] and source.ended


def of_named_pipe(path, stop=None):
    name = f"source.actions={path}"
    return LiveActions(named_pipe(name, path), ACTIONS, stop, name, owned=True)


def test_a_named_pipe_is_a_file(tmp_path):
    path = tmp_path / "actions"
    os.mkfifo(path)
    text = "".join(line(ACTIONS[i % 5], 3 * i) for i in range(400))
    file = ActionFile(action_file(tmp_path, text), ACTIONS)
    source = of_named_pipe(path)  # does not wait for a writer
    writer = threading.Thread(target=lambda: path.write_text(text))
    writer.start()
    assert source.take(0, 1500) == file.take(0, 1500) and source.ended
    writer.join()
    source.close()


@pytest.mark.parametrize("by", ["stop", "close"])
@pytest.mark.parametrize("written", [None, "", line("left", 0), '{"frame": 0, "ac'])
def test_a_blocked_take_from_a_named_pipe_is_released(tmp_path, by, written):
    path, stop, writing = tmp_path / "actions", threading.Event(), None
    os.mkfifo(path)
    if written is not None:
        writing = os.open(path, os.O_RDWR)  # without waiting for a reader
        os.write(writing, written.encode())
    source = of_named_pipe(path, stop)
    waiting = Blocked(source._bytes, lambda: source.take(0, 2), len(written or ""))
    expected = [LEFT, LEFT] if written == line("left", 0) else [NONE, NONE]
    assert waiting(stop.set if by == "stop" else source.close) == expected and source.ended
    source.close()
    assert source._bytes._stream.closed
    if writing is not None:
        os.close(writing)


def test_wrong_live_lines_are_skipped_with_a_warning(pipe, caplog):
    source, write = pipe
    with caplog.at_level(logging.WARNING):
        write(
            "nonsense\n" + line("jump", 0) + line("left", 3) + line("right", 1) + "y" * 20000 + "\n" + line("back", 5)
        )
        write('{"frame": 8, "action": "ri')
        write(None)
        assert source.take(0, 7) == [NONE, NONE, NONE, LEFT, LEFT, BACK, BACK]
        assert source.take(7, 3) == [BACK] * 3
    warned = [record.getMessage() for record in caplog.records]
    for part in ("line 1: is not JSON", "action=jump", "frame=1: comes after", "line 5: longer", "line 7: is not JSON"):
        assert sum(part in message for message in warned) == 1, (part, warned)


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n"])
def test_a_pipe_that_ends_before_it_says_anything_is_silent(text):
    source = LiveActions(io.BytesIO(text.encode()), ACTIONS)
    assert source.take(0, 2) == [NONE, NONE] and source.silent
    said = LiveActions(io.BytesIO(line("left").encode()), ACTIONS)
    assert said.take(0, 2) == [LEFT, LEFT] and said.ended and said.fresh and not said.silent


def test_it_is_said_once_that_a_pipe_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE_S", -1.0)
    os.mkfifo(path := tmp_path / "actions")
    said, waited, read = [], threading.Event(), LiveBytes._read

    def counted(self, *args):
        counted.times += 1
        if counted.times > 3:
            waited.set()
        return read(self, *args)

    counted.times = 0
    monkeypatch.setattr(LiveBytes, "_read", counted)
    monkeypatch.setattr(live.log, "warning", lambda text, *values: said.append(text % values))
    source = of_named_pipe(path)
    assert waited.wait(PATIENT_S)
    source.close()
    assert said == [f"source.actions={path}: nothing has come yet, waiting for whoever writes into it"]


def test_a_line_without_its_newline_counts_at_the_end():
    source = LiveActions(io.BytesIO(line("left", 0).strip().encode()), ACTIONS)
    assert source.take(0, 1) == [LEFT]
    source.close()


def test_a_flood_of_now_does_not_hold_a_chunk_up():
    """Whoever writes faster than lines are read has said enough with what had come when the chunk was asked for."""

    class Flood(io.RawIOBase):
        def read(self, size=-1):
            return text.read(size) or text.seek(0) or text.read(size)

    text = io.BytesIO(line("left").encode() * 1000)

    source = LiveActions(Flood(), ACTIONS)
    for chunk in range(1, 4):
        assert source.take(3 * chunk, 3) == [LEFT] * 3 and not source.ended
        assert source.position <= chunk * (HELD + 2 * LONGEST_LINE)
    source.close()


def test_memory_is_bounded_when_lines_come_far_ahead():
    expected = [frame % 5 for frame in range(3 * AHEAD)]
    text = "".join(line(ACTIONS[action], frame) for frame, action in enumerate(expected)).encode()
    source = LiveActions(io.BytesIO(text), ACTIONS)
    assert source.take(0, 2) == expected[:2]
    assert source._keyframes.pending <= 2 * AHEAD and source._bytes.buffered <= 65536
    assert source.take(2, 3 * AHEAD - 2) == expected[2:]
    source.close()


def test_live_actions_go_on_with_what_holds_and_what_was_announced():
    lines = b'{"frame": 3, "action": "left"}\n{"frame": 20, "action": "right"}\n{"frame": 40, "action": "none"}\n'
    first = LiveActions(io.BytesIO(lines), ACTIONS)
    before = first.take(0, 12)
    second = LiveActions(io.BytesIO(b'{"frame": 60, "action": "forward"}\n'), ACTIONS)
    second.resume(first.progress)
    whole = LiveActions(io.BytesIO(lines), ACTIONS)
    assert before + second.take(12, 12) + second.take(24, 12) == whole.take(0, 36)
