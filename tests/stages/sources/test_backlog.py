"""What is read ahead of a pipe outlives whoever read it: no byte is lost, none comes twice."""

from __future__ import annotations

import errno
import io
import logging
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sources import backlog
from stages.sources.actions import LiveActions
from stages.sources.audio import LivePcm
from stages.sources.backlog import Backlog
from stages.sources.live import LiveBytes

BYTES = bytes(range(251)) * 40


class Piped:
    """A pipe that readers follow each other at."""

    def __init__(self, folder, data=BYTES, end=True):
        self.folder, (reading, writing) = folder, os.pipe()
        self.stream = os.fdopen(reading, "rb", buffering=0)
        self.writing = os.fdopen(writing, "wb", buffering=0)
        self.writing.write(data)
        if end:
            self.writing.close()

    def reader(self, taken: int, limit: int = 64, block: int = 16) -> LiveBytes:
        return LiveBytes(self.stream, limit, block=block, backlog=Backlog(self.folder, "audio", taken))

    def copier(self, taken: int, limit: int = 64, block: int = 16) -> LiveBytes:
        """One to which nothing can be moved, as of a socket."""
        kept = Backlog(self.folder, "audio", taken)
        kept._moves = False
        return LiveBytes(self.stream, limit, block=block, backlog=kept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.writing.close()


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(backlog, "SEGMENT", 100)


LIVES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40), st.integers(1, 200)), max_size=5)


@settings(max_examples=40)
@given(LIVES, st.booleans())
def test_each_reader_goes_on_behind_what_chunks_were_made_of(lives, moves):
    """Of each that is lost: bytes that it took for chunks, that it took beside, and how many it holds at most."""
    with tempfile.TemporaryDirectory() as folder, Piped(Path(folder)) as pipe:
        known = b""
        for made, more, limit in lives:
            reader = (pipe.reader if moves else pipe.copier)(len(known), limit)
            while made:
                part = reader.take(1, made)
                known, made = known + part, made - len(part)
                reader.drop(len(known))
            reader.take(min(more, 1), more)
            reader.close()  # what it holds is gone
            sizes = [path.stat().st_size for path in Path(folder).glob("ahead.audio.0*")]
            assert sum(sizes) <= 2 * limit + 40 + 3 * (100 + 16)
        reader = pipe.reader(len(known))
        while part := reader.take(1, 100):
            known += part
        reader.close()
        assert known == BYTES


def test_what_was_there_when_the_reader_went_is_there_at_once_and_the_pipe_only_behind_it(tmp_path):
    with Piped(tmp_path, b"abcdef", end=False) as pipe:
        reader = pipe.reader(0)
        assert reader.take(6, 2) == b"ab"
        reader.close()
        pipe.writing.write(b"gh")
        again = pipe.reader(1)
        assert again.take(7, 99) == b"bcdefgh" and again.position == 8
        again.close()


def test_an_end_is_an_end_for_who_comes_next_though_nobody_tells_it_again(tmp_path):
    with Piped(tmp_path, b"abc") as pipe:
        reader = pipe.reader(0)
        assert reader.take(9, 9) == b"abc" and reader.ended
        reader.close()
    reading, writing = os.pipe()  # as a named pipe that nobody writes into
    with os.fdopen(reading, "rb", buffering=0) as stream, os.fdopen(writing, "wb"):
        again = LiveBytes(stream, 64, backlog=Backlog(tmp_path, "audio", 1))
        assert again.take(9, 9) == b"bc" and again.ended
        again.close()


def test_two_never_read_at_a_time(tmp_path):
    with Piped(tmp_path, b"abc", end=False) as pipe:
        first = pipe.reader(0)
        assert first.take(3, 0) == b""
        second = pipe.reader(0)
        pipe.writing.write(b"def")
        assert first.take(6, 6) == b"abcdef" and second.buffered == 0
        first.close()
        assert second.take(6, 6) == b"abcdef"
        second.close()


@pytest.mark.parametrize("moves", [True, False], ids=["moved", "copied"])
def test_full_memory_is_said_once_and_the_stream_goes_on(tmp_path, monkeypatch, caplog, moves):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Piped, "reader", Piped.reader if moves else Piped.copier)
    with caplog.at_level(logging.WARNING), Piped(tmp_path, b"x" * 30, end=False) as pipe:
        reader = pipe.reader(0)
        assert reader.take(30, 3) == b"xxx" and list(tmp_path.glob("ahead.audio.0*"))
        monkeypatch.setattr(backlog.os, "splice" if moves else "write", full)
        pipe.writing.write(b"y" * 33)
        assert reader.take(60, 60) == b"x" * 27 + b"y" * 33
        reader.close()
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    assert not list(tmp_path.glob("ahead.audio.0*"))
    left = Backlog(tmp_path, "audio", 3)
    assert left.enter() and left.left() == b""
    left.close()


def test_more_than_is_kept_of_encoded_sound_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(backlog, "MOST_BYTES", 300)
    with caplog.at_level(logging.WARNING), Piped(tmp_path) as pipe:
        reader = pipe.reader(0, limit=len(BYTES))
        assert reader.take(len(BYTES), len(BYTES)) == BYTES
        reader.close()
    assert ["0 MB have come" in record.getMessage() for record in caplog.records] == [True]
    assert not list(tmp_path.glob("ahead.audio.0*"))


def test_a_socket_is_copied(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", buffering=0) as stream:
        theirs.sendall(b"abc")
        reader = LiveBytes(stream, 64, backlog=Backlog(tmp_path, "audio"))
        assert reader.take(3, 1) == b"a"
        reader.close()
        again = LiveBytes(stream, 64, backlog=Backlog(tmp_path, "audio", 1))
        theirs.sendall(b"d")
        assert again.take(3, 9) == b"bcd"
        again.close()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 700), max_size=4))
def test_sound_is_whole(reads):
    sound = np.frombuffer(BYTES, "<i2").astype(np.float32) / 32768
    with tempfile.TemporaryDirectory() as folder, Piped(Path(folder)) as pipe:
        found, position = [], 0
        for samples in [*reads, len(sound)]:
            source = LivePcm(pipe.stream, buffer_s=0.01, backlog=Backlog(folder, "audio", position))
            found.append(source.read(samples))
            position = source.position
            source.read(7)  # for a chunk that never has a line
            source.close()
        assert np.array_equal(np.concatenate(found), sound)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), max_size=4), st.booleans())
def test_lines_are_whole_and_half_ones_too(counts, long):
    names, step = ("none", "forward", "back"), 3
    lines = [f'{{"frame": {step * n}, "action": "{names[n * 7 % 3]}"}}\n' for n in range(80)]
    if long:
        lines[20] = "x" * 9000 + "\n"
    text = "".join(lines).encode()
    whole = LiveActions(io.BytesIO(text), names)
    expected = whole.take(0, 300)
    whole.close()
    with tempfile.TemporaryDirectory() as folder, Piped(Path(folder), text) as pipe:
        found, position, progress = [], 0, None
        for count in [*counts, 300]:
            source = LiveActions(pipe.stream, names, backlog=Backlog(folder, "actions", position))
            if progress:
                source.resume(progress, again=True)
            found += source.take(len(found), min(count, 300 - len(found)))
            position, progress = source.position, source.progress
            source.drop(position)
            source.close()
        assert found == expected


def test_a_wav_header_is_looked_for_at_the_beginning_alone(tmp_path):
    with Piped(tmp_path, b"ab" + b"RIFF") as pipe:
        source = LivePcm(pipe.stream, backlog=Backlog(tmp_path, "audio", 0))
        source.read(1)
        source.close()
        again = LivePcm(pipe.stream, backlog=Backlog(tmp_path, "audio", 2))
        assert len(again.read(2)) == 2
        again.close()
