"""A reader whose sink is lost with its process, and another that goes on: no chunk twice, none left out, none torn."""

import json
import threading

import numpy as np
import pytest

from stages.link import Door, connect
from stages.sinks.reader import Reader, ReaderSink
from tests.patience import PATIENT_S

HOST = "127.0.0.1"


def never() -> bool:
    return False


def frames(chunk: int) -> np.ndarray:
    return np.random.default_rng(chunk).integers(0, 255, (3, 4, 6, 3), np.uint8)


@pytest.fixture
def reader():
    reader = Reader(HOST)
    yield reader
    reader.close()


def test_what_was_taken_is_not_taken_again(reader):
    first = ReaderSink(reader.address, 16)
    taken = []
    for chunk in range(2):
        first.write(frames(chunk), None)
        taken.append(reader.next(never))
    first.leave()
    second = ReaderSink(reader.address, 16, first=1)
    writing = threading.Thread(target=lambda: ([second.write(frames(c), None) for c in range(1, 5)], second.close()))
    writing.start()
    while (chunk := reader.next(never)) is not None:
        taken.append(chunk)
    writing.join(PATIENT_S)
    assert [chunk.index for chunk in taken] == list(range(5))
    assert all(np.array_equal(chunk.frames, frames(chunk.index)) for chunk in taken)


HEAD = b'{"index":0,"fps":16,"frames":[3,4,6,3],"sound":null}\n'


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD + bytes(100)], ids=["nothing", "half a line", "half a chunk"])
def test_a_torn_chunk_comes_again_whole(reader, sent):
    with connect("sink.reader", reader.address) as torn:
        torn.sendall(sent)
    sink = ReaderSink(reader.address, 16)
    sink.write(frames(0), None)
    assert np.array_equal(reader.next(never).frames, frames(0))
    sink.close()
    assert reader.next(never) is None


def test_a_sink_that_goes_without_a_word_ends_it_when_the_stream_is_over(reader):
    sink, over = ReaderSink(reader.address, 16), threading.Event()
    sink.write(frames(0), None)
    sink.leave()
    assert reader.next(never).index == 0
    found: list = []
    waiting = threading.Thread(target=lambda: found.append(reader.next(over.is_set)))
    waiting.start()
    over.set()
    waiting.join(PATIENT_S)
    assert found == [None]


@pytest.mark.parametrize("size", [6, 1500], ids=["small", "larger than a connection holds"])
def test_who_is_released_keeps_what_the_reader_has_not_taken(reader, size):
    """A program that does not read holds up its stream, and no more than that: no chunk is lost, torn or doubled."""
    sink = ReaderSink(reader.address, 16)

    def picture(chunk: int) -> np.ndarray:
        return np.full((8, size, size, 3), chunk, np.uint8)

    def write(*chunks: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: [sink.write(picture(chunk), None) for chunk in chunks])
        thread.start()
        return thread

    waiting = write(0, 1, 2)
    waiting.join(0.2)
    assert waiting.is_alive(), "it was to wait for the reader"
    sink.release()
    waiting.join(PATIENT_S)
    assert not waiting.is_alive() and sink.seen == 0
    sink.hold()
    waiting = write(3)
    waiting.join(0.2)
    assert waiting.is_alive(), "it waits again"
    for chunk in range(2):
        assert np.array_equal(reader.next(never).frames, picture(chunk))
    closing = threading.Thread(target=lambda: (waiting.join(PATIENT_S), sink.close()))
    closing.start()
    for chunk in range(2, 4):
        assert np.array_equal(reader.next(never).frames, picture(chunk))
    assert reader.next(never) is None
    closing.join(PATIENT_S)
    assert not closing.is_alive()


def test_an_end_that_was_said_is_the_end_whoever_else_comes(reader):
    sink = ReaderSink(reader.address, 16)
    sink.close()
    assert reader.next(never) is None
    assert reader.next(never) is None


def test_who_waits_for_another_is_let_go_by_closing(reader):
    ReaderSink(reader.address, 16).leave()
    waiting = threading.Thread(target=lambda: reader.next(never))
    waiting.start()
    reader.close()
    waiting.join(PATIENT_S)
    assert not waiting.is_alive()


def test_what_a_sink_says_at_its_end():
    door = Door(HOST)
    sink = ReaderSink(door.address, 16)
    assert not door.came and door.wait(never) and door.came
    sink.close()
    assert json.loads(door.file.readline()) == {"end": True} and door.file.read() == b""
    door.again()
    assert door.socket is None and not door.wait(lambda: True)
    door.close()
