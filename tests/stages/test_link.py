"""A stream's connection with the program that opened it."""

import socket
import threading

import numpy as np
import pytest

from conf.errors import UserError
from stages.link import Door, connect
from stages.sinks.reader import AHEAD, Reader, ReaderSink
from tests.patience import PATIENT_S

HOST = "127.0.0.1"


def never() -> bool:
    return False


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 255, (count, 4, 6, 3), np.uint8)


@pytest.fixture
def reader():
    reader = Reader(HOST)
    yield reader
    reader.close()


def test_chunks_arrive_as_they_were_given(reader):
    sink = ReaderSink(reader.address, 16, first=7)
    given = [(frames(3), np.linspace(-1, 1, 5, dtype=np.float32)), (frames(2), None), (frames(1)[:, ::-1], np.zeros(0))]
    for one, (pictures, sound) in enumerate(given):
        sink.write(pictures, sound)
        chunk = reader.next(never)
        assert (chunk.index, chunk.fps) == (7 + one, 16)
        assert chunk.frames.dtype == np.uint8 and np.array_equal(chunk.frames, pictures)
        assert chunk.sound is None if sound is None else np.array_equal(chunk.sound, sound)
    sink.close()
    assert reader.next(never) is None


def test_what_is_sent_before_the_end_is_read_after_it(reader):
    sink = ReaderSink(reader.address, 16)
    for _ in range(AHEAD):
        sink.write(frames(1), None)
    sink.close()
    assert [reader.next(lambda: True).index for _ in range(AHEAD)] == list(range(AHEAD))
    assert reader.next(lambda: True) is None


def test_a_sink_waits_for_its_reader(reader):
    written, more = [], threading.Semaphore(0)

    def write() -> None:
        sink = ReaderSink(reader.address, 16)
        for chunk in range(3 * AHEAD):
            sink.write(frames(1), None)
            written.append(chunk)
            more.release()
        sink.close()

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(AHEAD):
        assert more.acquire(timeout=PATIENT_S)
    for taken in range(3 * AHEAD):
        assert len(written) <= taken + AHEAD
        assert reader.next(never).index == taken
    assert reader.next(never) is None
    thread.join()


def test_once_the_reader_has_gone_all_is_thrown_away(reader):
    sink = ReaderSink(reader.address, 16)
    sink.write(frames(1), None)
    assert reader.next(never).index == 0
    reader.close()
    for _ in range(5 * AHEAD):
        sink.write(frames(64), None)
    sink.close()
    assert reader.next(never) is None


def test_a_sink_that_is_held_is_let_go_by_its_readers_end(reader):
    sink = ReaderSink(reader.address, 16)
    thread = threading.Thread(target=lambda: [sink.write(frames(1), None) for _ in range(2 * AHEAD)])
    thread.start()
    assert reader.next(never).index == 0
    reader.close()
    thread.join(timeout=PATIENT_S)
    assert not thread.is_alive()


def test_who_does_not_know_the_token_is_not_let_in():
    door = Door(HOST)
    host, port = door.address.removeprefix("tcp://").split("/")[0].split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"x" * 32)
        with connect("source.actions", door.address) as stage:
            assert door.wait(never)
            stage.sendall(b"hello\n")
            assert door.file.readline() == b"hello\n"
    door.close()
    assert not Door(HOST).wait(lambda: True)


@pytest.mark.parametrize("address", ["tcp://", "tcp://here", "tcp://here:1", "tcp://here:port/token", "tcp://:1/token"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match=r"is no address; give tcp://HOST:PORT/TOKEN"):
        connect("sink.reader", address)


def test_where_nobody_listens_is_said_without_the_token():
    door = Door(HOST)
    door.close()
    with pytest.raises(UserError, match=r"sink.reader=tcp://127.0.0.1:\d+: nobody answers there") as found:
        connect("sink.reader", door.address)
    assert door.address.rpartition("/")[2] not in str(found.value)
