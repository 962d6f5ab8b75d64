"""Standard input on Ray goes to whoever has the encoding worker's place, from the byte on that is missing there."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager

import pytest

from launch import ray
from launch.ray import POSITION, Feed, _feed
from tests.patience import PATIENT_S

DATA = bytes(range(256)) * 4096


@contextmanager
def fed():
    """(where readers connect, what is written to): a run's standard input."""
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener, os.fdopen(reading, "rb", buffering=0) as stream:
        thread = threading.Thread(target=_feed, args=(listener, stream), daemon=True)
        thread.start()
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            yield listener.getsockname(), pipe
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENT_S)
        assert not thread.is_alive()


@contextmanager
def reader(address, position: int):
    """Somebody who has so many bytes."""
    with socket.create_connection(address, timeout=PATIENT_S) as connection:
        connection.sendall(POSITION.pack(position))
        yield connection


def read(connection, count: int) -> bytes:
    found = b""
    while len(found) < count and (part := connection.recv(min(65536, count - len(found)))):
        found += part
    return found


def test_who_takes_the_place_of_one_that_is_lost_is_given_what_comes():
    with fed() as (address, pipe):
        with reader(address, 0) as first:
            pipe.write(b"one")
            assert read(first, 3) == b"one"
        with reader(address, 3) as second:
            pipe.write(b"two")
            assert read(second, 3) == b"two"
            pipe.close()
            assert second.recv(16) == b""
        with reader(address, 6) as third:
            assert third.recv(16) == b"", "this is the end for all who come"
        with reader(address, 1) as fourth:
            assert read(fourth, 99) == b"netwo", "and nothing is missing before it"


@pytest.mark.parametrize("taken", [0, 1, 70000, 500001])
def test_what_went_with_a_reader_is_sent_again_and_the_end_behind_it(taken):
    """The pipe's end has come before anybody is lost, and all is on the way."""
    with fed() as (address, pipe):
        writer = threading.Thread(target=lambda: (pipe.write(DATA), pipe.close()))
        writer.start()
        with reader(address, 0) as first:
            assert read(first, taken) == DATA[:taken]
        with reader(address, taken) as second:
            assert read(second, len(DATA) + 1) == DATA[taken:]
        writer.join(PATIENT_S)


def test_who_hangs_is_left_when_another_comes():
    with fed() as (address, pipe):
        threading.Thread(target=lambda: (pipe.write(DATA), pipe.close())).start()
        with reader(address, 0) as hangs, reader(address, 0) as second:
            assert read(second, len(DATA) + 1) == DATA
            assert hangs.fileno() >= 0


def test_what_is_too_old_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(ray, "KEPT", 1 << 16)
    with caplog.at_level(logging.WARNING), fed() as (address, pipe):
        threading.Thread(target=lambda: (pipe.write(DATA), pipe.close())).start()
        with reader(address, 0) as first:
            assert read(first, len(DATA)) == DATA
        with reader(address, 5) as second:
            rest = read(second, len(DATA))
        assert rest and DATA.endswith(rest)
        assert [f"{len(DATA) - len(rest) - 5} bytes" in record.getMessage() for record in caplog.records] == [True]


def test_a_process_that_reads_again_connects_again():
    """It was given another part in between, and somebody else has read meanwhile."""
    with fed() as (address, pipe):
        feed = Feed(address)
        pipe.write(b"abc")
        assert os.read(feed.fileno(), 1) == b"a"
        with reader(address, 1) as other:
            assert read(other, 1) == b"b"
            feed.go_on(2)
            assert os.read(feed.fileno(), 9) == b"c"
        feed._connection.close()
