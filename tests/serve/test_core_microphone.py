"""A microphone's sound on a virtual clock: what is heard, what is missing, and how far behind it stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sources.audio import RATE
from stages.sources.microphone import HELD, RESERVE, SPARE, SPEECH_S, Microphone, Speech
from stages.sources.reserve import LATELY

SCALE = 1 << 24
"""A float32 holds every whole number up to this: a sample says where on its line it was."""
CHUNK = 3 * RATE // 4
PIECE = RATE // 50


def spoken(at: int, count: int) -> np.ndarray:
    return (np.arange(at, at + count) + 1).astype(np.float32) / SCALE


def positions(samples: np.ndarray) -> np.ndarray:
    """Where what was heard has been on its line; -1: silence."""
    return np.round(samples * SCALE).astype(np.int64) - 1


class Line:
    """A microphone that is spoken into and read in turn, each at its own pace.

    Attributes:
        reserves: samples between what was read last and the newest, after every chunk.
        heard: positions of all that was read.
    """

    def __init__(self):
        self.microphone, self.said = Microphone(), 0
        self.reserves, self.heard = [], []

    def say(self, samples: int, lost=lambda at: False) -> None:
        end = self.said + samples
        while self.said < end:
            count = min(PIECE, end - self.said)
            if not lost(self.said):
                self.microphone.give(self.said, spoken(self.said, count))
            self.said += count

    def read(self, count: int = CHUNK) -> np.ndarray:
        self.microphone.begin()
        got = positions(self.microphone.read(count))
        self.microphone.end()
        self.heard.append(got)
        if (got >= 0).any():
            self.reserves.append(self.said - 1 - int(got.max()))
        return got


def test_what_is_said_in_time_is_heard_once_and_in_place():
    line = Line()
    for _ in range(20):
        line.say(CHUNK)
        line.read()
    heard = np.concatenate(line.heard)
    heard = heard[heard >= 0]
    assert np.array_equal(heard, np.arange(20 * CHUNK - RESERVE))
    assert set(line.reserves) == {RESERVE}
    assert (line.microphone.silent, line.microphone.late) == (RESERVE, 0)


def test_what_is_lost_is_silence_in_its_place_even_a_whole_ring_later():
    """Before the first read, and where some was skipped, samples are never read: they must not be heard later."""
    line = Line()
    line.say(2 * HELD - RATE)
    line.read()
    for chunk in range(12):
        line.say(CHUNK, lost=lambda at: at // PIECE % 5 == 0)
        got = line.read()
        there = got >= 0
        first = int(got[there][0]) - int(np.flatnonzero(there)[0])
        assert np.array_equal(got[there], np.arange(first, first + CHUNK)[there]), chunk
        assert abs(np.mean(~there) - 0.2) < 0.05, chunk


def test_pieces_in_any_order_are_heard_in_theirs_and_what_is_too_late_never():
    microphone = Microphone()
    microphone.give(0, spoken(0, CHUNK))
    microphone.begin()
    microphone.read(CHUNK)
    microphone.end()
    read = CHUNK - RESERVE
    for at in (CHUNK + PIECE, CHUNK, CHUNK + 2 * PIECE):
        microphone.give(at, spoken(at, PIECE))
    microphone.give(read - PIECE // 2, spoken(read - PIECE // 2, PIECE))  # half of it is over
    assert microphone.late == PIECE // 2
    got = positions(microphone.read(RESERVE + 3 * PIECE))
    assert np.array_equal(got, np.arange(read, CHUNK + 3 * PIECE))
    microphone.give(CHUNK, spoken(CHUNK, PIECE))
    assert microphone.late == PIECE // 2 + PIECE
    assert not microphone.read(PIECE).any()


@pytest.mark.parametrize("drift", [-2e-3, 2e-3])
def test_two_clocks_that_differ_stay_together(drift):
    """Ten minutes, 2 per mille apart: without care that would be 1.2 s."""
    line, chunks, said = Line(), 800, 0.0
    for _ in range(chunks):
        said += CHUNK * (1 + drift)
        line.say(round(said) - line.said)
        line.read()
    step = LATELY * 2e-3 * CHUNK + RESERVE
    assert max(line.reserves) <= SPARE + step
    heard = np.concatenate(line.heard)
    heard = heard[heard >= 0]
    assert (np.diff(heard) > 0).all()
    missing = 1 - len(heard) / line.said
    assert missing < 2 * abs(drift) + 1e-3


def test_sound_that_was_held_up_does_not_stay_behind():
    """A way that was slow once: the delay that it leaves is skipped."""
    line = Line()
    for chunk in range(3 * LATELY):
        line.say(CHUNK + (RATE if chunk == 5 else 0))
        line.read()
    assert max(line.reserves) >= RATE and line.reserves[-1] <= SPARE
    assert line.microphone.skipped >= RATE - SPARE


def test_a_way_that_has_become_longer_is_followed():
    line = Line()
    for chunk in range(4 * LATELY):
        line.say(CHUNK if chunk != 3 else CHUNK - RATE // 4)
        line.read()
    assert (line.heard[-1] >= 0).all()
    assert line.reserves[-1] <= SPARE


def test_one_that_is_not_read_for_long_is_heard_from_now_on():
    line = Line()
    line.say(CHUNK)
    line.read()
    line.say(3 * HELD)
    got = line.read()
    assert np.array_equal(got, np.arange(line.said - CHUNK - RESERVE, line.said - RESERVE))


@pytest.mark.parametrize("at", [0, 50 * RATE, 10**9])
def test_another_microphone_is_heard_at_once(at):
    microphone = Microphone()
    microphone.give(20 * RATE, spoken(0, CHUNK))
    microphone.read(CHUNK)
    microphone.give(at, spoken(at % SCALE, CHUNK) / 2)
    got = microphone.read(CHUNK)
    assert np.count_nonzero(got) == CHUNK - RESERVE
    assert microphone.late == 0


def test_a_piece_longer_than_what_is_held_keeps_its_end_in_place():
    microphone = Microphone()
    microphone.give(0, spoken(0, HELD + RATE))
    got = positions(microphone.read(RATE))
    assert np.array_equal(got, np.arange(HELD - RESERVE, HELD + RATE - RESERVE))


def test_before_anything_is_said_there_is_silence():
    microphone = Microphone()
    microphone.begin()
    assert not microphone.read(CHUNK).any()
    microphone.end()
    assert microphone.silent == 0


pieces = st.lists(
    st.tuples(st.integers(0, 12 * RATE), st.integers(1, RATE // 2), st.booleans()), min_size=1, max_size=40
)


@settings(max_examples=60)
@given(pieces)
def test_whatever_comes_nothing_is_heard_out_of_place(found):
    """Pieces anywhere within a second of the newest one; what is read is what was there, or silence, never again."""
    microphone, given_at, heard = Microphone(), set(), set()
    newest = 0
    for at, count, reads in found:
        at = max(0, newest - RATE // 2) + at % RATE
        microphone.give(at, spoken(at, count))
        newest = max(newest, at + count)
        given_at.update(range(at, at + count))
        if reads:
            microphone.begin()
            got = positions(microphone.read(RATE // 4))
            microphone.end()
            there = got[got >= 0]
            assert (np.diff(there) > 0).all()
            assert len(np.unique(there - np.flatnonzero(got >= 0))) <= 1
            assert given_at.issuperset(there.tolist()) and heard.isdisjoint(there.tolist())
            heard.update(there.tolist())


def test_speech_is_spoken_in_order_and_in_full():
    speech = Speech()
    for at in range(0, 1000, 100):
        assert speech.give(spoken(at, 100))
    got = [speech.read(count) for count in (30, 70, 250, 1000)]
    assert [len(one) for one in got] == [30, 70, 250, 650]
    assert np.array_equal(positions(np.concatenate(got)), np.arange(1000))
    assert speech.held == 0 and not len(speech.read(10))


def test_speech_beyond_what_is_held_is_refused_and_cleared_speech_is_gone():
    speech = Speech()
    most = int(SPEECH_S * RATE)
    assert speech.give(np.zeros(most, np.float32))
    assert not speech.give(np.zeros(1, np.float32))
    speech.read(10)
    assert speech.give(np.zeros(10, np.float32))
    speech.clear()
    assert speech.held == 0 and not len(speech.read(10))
    assert speech.give(np.zeros(most, np.float32))


def test_what_is_heard_while_a_chunk_is_put_off_is_left_out():
    """So its delay is at once what it was."""
    one, late = Microphone(), CHUNK // 4
    one.give(0, spoken(0, CHUNK + RESERVE))
    one.begin()
    assert positions(one.read(CHUNK))[-1] == CHUNK - 1
    one.end()
    one.give(CHUNK + RESERVE, spoken(CHUNK + RESERVE, CHUNK + late))
    one.begin(skip=late)
    heard = positions(one.read(CHUNK))
    assert (heard[0], heard[-1]) == (CHUNK + late, 2 * CHUNK + late - 1) and one.skipped == late
