"""Encoded sound through a pipe is what the same file gives, also where whoever hears it changes."""

from __future__ import annotations

import os
import threading
from functools import partial

import numpy as np
import pytest

from conf.errors import UserError
from stages.sources.ahead import Ahead
from stages.sources.audio import RATE
from stages.sources.audio_file import AudioFile
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes, Stop, Turned, kept_open, named_pipe
from tests.helpers import write_wav


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and its writing end."""
    os.mkfifo(path := tmp_path / "pipe")
    with os.fdopen(os.open(path, os.O_RDWR), "wb", buffering=0) as writing:
        yield path, writing


def test_nothing_is_lost_where_whoever_waits_is_told_that_the_run_turned(tmp_path, pipe):
    path, writing = pipe
    file = write_wav(tmp_path / "speech.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE))
    data, expected = file.read_bytes(), AudioFile(file).read(2 * RATE)
    source, found, turns = Ahead(partial(AudioFile, path), Stop(), "source.audio"), [], []

    def hear():
        try:
            while len(part := source.read(RATE // 3)):
                found.append(part)
        except Turned:
            turns.append(len(found))

    sent = 0
    for end in (50, RATE, 3 * RATE, len(data)):
        source.wire(stop := Stop())
        listener = threading.Thread(target=hear)
        listener.start()
        writing.write(data[sent:end])
        sent = end
        writing.close() if end == len(data) else stop.turn()
        listener.join()
    assert len(turns) == 3
    np.testing.assert_array_equal(np.concatenate(found), expected)
    source.close()


def test_it_is_released_by_a_stop_and_when_it_is_closed(pipe):
    stop = Stop()
    source = Ahead(partial(AudioFile, pipe[0]), stop, "source.audio")
    listener = threading.Thread(target=lambda: found.append(len(source.read(100))))
    found: list[int] = []
    listener.start()
    stop.set()
    listener.join()
    source.close()
    assert found == [0] and len(source.read(100)) == 0


def test_what_is_no_sound_is_one_line(tmp_path):
    os.mkfifo(path := tmp_path / "pipe")
    source = Ahead(partial(AudioFile, path), Stop(), "source.audio")
    with path.open("wb") as writing:  # once somebody reads
        writing.write(b"no sound at all " * 100)
    with pytest.raises(UserError, match="cannot be read as sound"):
        source.read(100)
    source.close()


@pytest.mark.parametrize("lost", [(0,), (1, RATE), (RATE // 2, RATE // 2 + 1, 3 * RATE)])
def test_each_process_goes_on_behind_the_samples_of_the_one_before(tmp_path, pipe, lost):
    """A decoder begins at the beginning, though the pipe does not: it is the next process's as well."""
    path, writing = pipe
    file = write_wav(tmp_path / "speech.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE))
    data, expected = file.read_bytes(), AudioFile(file).read(3 * RATE)
    writer = threading.Thread(target=lambda: (writing.write(data), writing.close()))
    writer.start()
    found, position, kept = [], 0, kept_open([str(path), None])
    for end in (*lost, 4 * RATE):
        source = Ahead(partial(AudioFile, path), Stop(), "source.audio", Backlog(tmp_path, "audio", 0), position)
        found.append(source.read(end - position // 2))
        position = source.position
        source.read(10)
        source.close()
    writer.join()
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert [one.close() for one in kept] == [None]


def test_a_pipe_that_is_kept_open_ends_for_who_opens_it_when_its_writers_have_left(tmp_path):
    os.mkfifo(path := tmp_path / "pipe")
    [kept] = kept_open([str(path)])
    with path.open("wb") as writing:
        writing.write(b"abc")
    late = LiveBytes(named_pipe("source.actions", path), 64)
    assert late.take(9, 9) == b"abc" and late.ended
    late.close()
    kept.close()
