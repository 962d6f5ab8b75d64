"""What a person says, presses and types, from the gateway's connection to the chunk that shows it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from stages.controls import Controls
from stages.sources.audio import RATE
from stages.sources.microphone import RESERVE
from stages.sources.session import SessionSource
from stages.sources.session_parts import TAP_FRAMES, SessionActions
from tests.patience import PATIENT_S
from tests.serve.core_ends import TOKEN, Clock, End

NAMES = ("none", "forward", "left", "right")


class Stage:
    """A source and its gateway's end.

    Attributes:
        prompts: (prompt, when it was accepted, number) as they steered.
        slacks: (seconds, late_s) that were told.
    """

    def __init__(self, end: End):
        self.end, self.clock, self.stop = end, Clock(), threading.Event()
        self.prompts: list[tuple[str, float, int]] = []
        self.slacks: list[tuple[float, float]] = []
        self._told = threading.Event()
        self.source = SessionSource(end.address, NAMES, self.stop, self._steer, self._slack, self.clock)

    def _steer(self, prompt: str, at: float, number: int) -> None:
        self.prompts.append((prompt, at, number))

    def _slack(self, seconds: float, late_s: float) -> None:
        self.slacks.append((seconds, late_s))
        self._told.set()

    def say(self, kind: str, body: bytes = b"", **head) -> None:
        """Say something; returns when it was taken: messages are in order, and slack is told at once."""
        self.end.say(kind, body, **head)
        self._told.clear()
        self.end.say("slack", seconds=0.5, late_s=0.0)
        assert self._told.wait(PATIENT_S)

    def event(self, id: str, **event) -> None:
        self.clock.now += 1
        self.say("event", id=id, event=event)

    def sample(self, chunk: int, samples: int = 0) -> tuple[dict, np.ndarray]:
        """A chunk: what the gateway is told of it, and its sound."""
        self.source.begin()
        sound = self.source.sound.read(samples)
        self.source.sampled(chunk)
        return self.end.hear("sampled")[0], sound


@contextmanager
def stage():
    with End() as end:
        made = Stage(end)
        try:
            yield made
        finally:
            made.source.close()


def pcm(value: float, samples: int) -> bytes:
    return np.full(samples, round(value * 32768), "<i2").tobytes()


def test_events_show_in_the_next_chunk_in_their_order():
    with stage() as one:
        one.event("a", type="prompt", prompt="by day")
        one.event("b", type="action", action="forward")
        one.event("c", type="prompt", prompt="by night")
        told, _ = one.sample(0)
        assert (told["chunk"], told["events"]) == (0, ["a", "b", "c"])
        assert one.prompts == [("by day", 101.0, 1), ("by night", 103.0, 2)]
        assert one.source.actions.accepted == 102.0
        assert one.source.actions.take(0, 12) == [NAMES.index("forward")] * 12
        told, _ = one.sample(1)
        assert told["events"] == [] and one.source.actions.accepted is None
        assert one.source.actions.take(12, 12) == [NAMES.index("forward")] * 12  # still held
        one.event("d", type="prompt", prompt="by day")
        assert one.sample(2)[0]["events"] == ["d"]
        assert [number for *_, number in one.prompts] == [1, 2, 3]


def test_a_key_that_was_pressed_for_a_moment_is_seen():
    with stage() as one:
        for index, action in enumerate(("left", "none")):
            one.event(f"k{index}", type="action", action=action)
        one.sample(0)
        assert one.source.actions.take(0, 12) == [NAMES.index("left")] * TAP_FRAMES + [0] * (12 - TAP_FRAMES)
        one.sample(1)
        assert one.source.actions.take(12, 12) == [0] * 12


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 24), st.integers(0, 3))
def test_what_is_held_at_the_end_always_shows_and_taps_have_their_frames(pressed, count, held):
    actions = SessionActions()
    actions.begin([(held, 0.0)])
    actions.take(0, 1)
    actions.begin([(action, float(at)) for at, action in enumerate(pressed)])
    shown = actions.take(1, count)
    last = pressed[-1] if pressed else held
    assert len(shown) == count and shown[-1] == last
    taps = [action for action in shown if action != last]
    assert all(taps.count(action) == TAP_FRAMES for action in set(taps))
    assert set(taps) <= set(pressed[:-1]) - {0}
    assert list(dict.fromkeys(taps)) == [a for a in dict.fromkeys(pressed[:-1]) if a in set(taps)]
    wanted = {action for action in pressed[:-1] if action and action != last}
    assert len(set(taps)) == min(len(wanted), max(0, count // TAP_FRAMES - 1))


ROWS = st.tuples(*[st.sampled_from([0.0, 1.0])] * 2, *[st.sampled_from([0.0, 0.25, -0.25, 0.5, 2.0])] * 2)


@settings(max_examples=200)
@given(ROWS, st.lists(ROWS, max_size=12), st.sampled_from([4, 9, 12, 24]))
def test_of_rows_the_last_holds_and_nothing_is_lost_that_was_over_before_it(held, pressed, count):
    actions = SessionActions(Controls(("a", "b"), axes=("x", "y")))
    actions.begin([(held, 0.0)])
    actions.take(0, 1)
    actions.begin([(row, float(at)) for at, row in enumerate(pressed)])
    shown = actions.take(1, count)
    last = pressed[-1] if pressed else held
    taps = shown[: next(i for i in range(count) if set(shown[i:]) == {last})]
    slots = max(0, count // TAP_FRAMES - 1)
    assert len(shown) == count and shown[-1] == last and len(taps) <= slots * TAP_FRAMES
    assert all(taps[i] == taps[i - i % TAP_FRAMES] for i in range(len(taps)))
    for key in (0, 1) if slots else ():
        begun = [now[key] for before, now in pairwise((held, *pressed[:-1])) if now[key] > before[key]]
        assert not begun or any(row[key] for row in shown), "no key is lost, however many were pressed"
    for column in (2, 3) if slots and len({row[:2] for row in pressed}) == 1 else ():
        was = [row[column] for row in (held, *pressed)]
        begun = [abs(now) for before, now in pairwise(was[:-1]) if abs(now) > abs(before)]
        if begun and not was[-1]:
            assert max(abs(row[column]) for row in taps) >= max(begun), "a flick is not lost"


def test_keys_that_are_let_go_of_one_after_the_other_were_shown_before():
    actions = SessionActions(Controls(("a", "b"), axes=("x",)))
    both, one, none = (1.0, 1.0, 0.5), (1.0, 0.0, 0.25), (0.0, 0.0, 0.0)
    actions.begin([(both, 0.0)])
    actions.begin([(one, 0.0), (none, 1.0)])
    assert actions.take(0, 12) == [none] * 12 and actions.accepted == 0.0
    actions.begin([(both, 0.0), (one, 1.0), (none, 2.0)])
    assert actions.take(0, 12) == [both] * 4 + [none] * 8


def test_speech_is_heard_in_full_in_place_of_the_microphone_which_is_not_delayed_by_it():
    with stage() as one:
        chunk, at = RATE // 2, 0
        for index in range(2):
            one.say("sound", pcm(0.25, chunk), at=at)
            at += chunk
            one.sample(index, chunk)
        one.say("speech", pcm(0.5, chunk + 100))
        one.say("sound", pcm(0.25, chunk), at=at)
        told, sound = one.sample(2, chunk)
        assert np.all(sound == 0.5) and told["held_s"] == 100 / RATE
        one.say("sound", pcm(0.25, chunk), at=at + chunk)
        told, sound = one.sample(3, chunk)
        assert np.all(sound[:100] == 0.5) and not sound[100:].any() and told["held_s"] == 0
        one.say("sound", pcm(-0.25, chunk), at=at + 2 * chunk)
        told, sound = one.sample(4, chunk)
        assert np.all(sound[:RESERVE] == 0.25) and np.all(sound[RESERVE:] == -0.25)
        assert (told["silence_s"], told["late_s"]) == (0, 0)


def test_an_interrupt_takes_the_speech_that_waits_and_no_more():
    with stage() as one:
        one.say("speech", pcm(0.5, RATE))
        one.sample(0, 100)
        one.event("stop it", type="interrupt")
        one.say("speech", pcm(-0.5, 50))
        told, sound = one.sample(1, 100)
        assert told["events"] == ["stop it"]
        assert np.all(sound[:50] == -0.5) and not sound[50:].any()


def test_sound_that_is_missing_and_that_is_late_is_told_of_the_chunk():
    with stage() as one:
        one.say("sound", pcm(0.5, RATE), at=0)
        one.sample(0, RATE)
        told, _ = one.sample(1, RATE // 2)
        assert told["silence_s"] == pytest.approx(0.5 - RESERVE / RATE) and told["late_s"] == 0
        one.say("sound", pcm(0.5, RATE // 4), at=RATE)
        told, _ = one.sample(2, 0)
        assert told["late_s"] == pytest.approx(0.25) and told["silence_s"] == 0


@pytest.mark.parametrize(
    ("kind", "head", "body"),
    [
        ("event", {"id": "x", "event": {"type": "action", "action": "fly"}}, b""),
        ("event", {"id": "x"}, b""),
        ("sound", {"at": 0}, b"odd"),
        ("speech", {}, b"o"),
        ("slack", {"seconds": None}, b""),
        ("of another time", {}, b"??"),
    ],
)
def test_what_is_not_understood_is_skipped(kind, head, body):
    with stage() as one:
        one.say(kind, body, **head)
        one.event("good", type="action", action="right")
        assert one.sample(0)[0]["events"] == ["good"]
        assert not one.stop.is_set()


def test_the_picture_comes_before_all_else():
    with End(("hello", b"a picture")) as end:
        one = Stage(end)
        assert one.source.picture == b"a picture" and not one.stop.is_set()
        one.source.close()


@pytest.mark.parametrize("hello", [("slack", b""), None], ids=["another word", "gone"])
def test_who_does_not_speak_as_a_gateway_is_one_line(hello):
    with End(hello) as end:
        if hello is None:
            threading.Thread(target=end.leave).start()
        with pytest.raises(UserError, match=r"source\.session=tcp://[^/]*: says no hello.*use one version") as caught:
            Stage(end)
        assert TOKEN not in str(caught.value)


def test_the_slack_of_chunks_is_passed_on():
    with stage() as one:
        one.say("slack", seconds=-0.25, late_s=0.125)
        assert one.slacks == [(-0.25, 0.125), (0.5, 0.0)]


def test_a_chunk_says_where_the_worlds_camera_is():
    with End() as end:
        one = Stage(end)
        for at in ([1.0, 0.0, 2.0, 90.0, 0.0], None):
            one.source.begin()
            one.source.sampled(0, at)
            assert end.hear("sampled")[0]["at"] == at
        one.source.close()


@pytest.mark.parametrize("ends", ["told", "gone"])
def test_a_gateway_that_ends_the_session_or_is_gone_ends_the_stream(ends):
    with End() as end:
        one = Stage(end)
        one.say("slack", seconds=0, late_s=0)
        assert not one.stop.is_set()
        end.say("end") if ends == "told" else end.close()
        assert one.stop.wait(PATIENT_S)
        one.source.begin()
        one.source.sampled(0)  # nobody hears it any more, and nothing is raised
        one.source.close()


def test_closing_wakes_the_listener():
    with End() as end:
        one = Stage(end)
        one.say("slack", seconds=0, late_s=0)
        one.source.close()
        assert one.stop.is_set()
        assert end.hear()[0]["kind"] == "end" and end.hear() is None


def test_where_nobody_answers_is_one_line():
    with End() as end:
        address = end.address
        end.close()
        with pytest.raises(UserError, match=r"source\.session=tcp://127.*: nobody answers there"):
            SessionSource(address, NAMES, threading.Event(), print, print)
