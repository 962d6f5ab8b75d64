"""A session's clock, by virtual time: when each picture and packet leaves, and what viewers can ask for meanwhile."""

from __future__ import annotations

import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sinks.coded import PACKET, PICTURE_TICKS, SOUND_TICKS
from stages.sinks.player import AHEAD, FADE, Made, Player
from tests.patience import PATIENT_S
from tests.serve.core_ends import Clock

FPS, FRAMES, SIZE = 16, 12, 32
CHUNK_S = FRAMES / FPS
MARGIN_S = 0.08


class Stage:
    """A player whose chunks come when a test says so, and what it has sent, each with its moment."""

    def __init__(self, sound: bool = True, codecs=("h264",), fps: float = FPS, margin_s: float = MARGIN_S):
        self.clock, self.sent, self.fps, self.chunks = Clock(), [], fps, 0
        self.player = Player(fps, SIZE, SIZE, sound, self._send, margin_s)
        self.sounds = sound
        self.player.want(list(codecs))

    def _send(self, kind: str, body: bytes, **head) -> None:
        self.sent.append((self.clock.now, kind, body, head))

    def put(self, frames: int = FRAMES, tone: float = 0.0) -> None:
        pictures = np.random.default_rng(self.chunks).integers(0, 255, (frames, SIZE, SIZE, 3), np.uint8)
        samples = round(frames * 16_000 / self.fps)
        at = np.arange(self.chunks * samples, (self.chunks + 1) * samples) / 16_000
        sound = (tone * np.sin(2 * np.pi * 440 * at)).astype(np.float32) if self.sounds else None
        self.player.put(Made(self.chunks, pictures, sound), self.clock)
        self.chunks += 1

    def run(self, until: float) -> None:
        """Let time pass in steps of a millisecond, sending what is due."""
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + 1e-3)
            self.player.step(self.clock.now)

    def of(self, kind: str) -> list[tuple[float, bytes, dict]]:
        return [(at, body, head) for at, one, body, head in self.sent if one == kind]

    def play(self, count: int, **given) -> None:
        """So many chunks, each there when the one before has begun."""
        for _ in range(count):
            self.put(**given)
            self.run(self.clock.now + CHUNK_S)


def loudness(packets: list[bytes]) -> np.ndarray:
    """Of each packet's samples as a listener has them, the largest."""
    decoder, found = av.CodecContext.create("libopus", "r"), []
    decoder.sample_rate, decoder.layout = SOUND_TICKS, "mono"
    for body in packets:
        found.append(max(float(np.abs(one.to_ndarray()).max()) for one in decoder.decode(av.Packet(body))))
    return np.array(found) / 32768


@pytest.mark.parametrize("fps", [16, 15, Fraction(30000, 1001), 24])
def test_everything_leaves_when_it_is_due_on_one_clock(fps):
    stage = Stage(fps=float(fps))
    zero = stage.clock.now + MARGIN_S
    for _ in range(8):
        stage.put()
        stage.run(stage.clock.now + FRAMES / float(fps))
    stage.run(stage.clock.now + 1)
    pictures, packets = stage.of("video"), stage.of("sound")
    assert len(pictures) == 8 * FRAMES
    for index, (at, _, head) in enumerate(pictures):
        due = index / float(fps)
        assert head["pts"] == round(due * PICTURE_TICKS)
        assert -1e-9 <= at - zero - due < 2e-3
    for index, (at, _, head) in enumerate(packets):
        assert head["pts"] == index * PACKET
        assert -1e-9 <= at - zero - index * 0.02 < 2e-3
    assert len(packets) >= 8 * FRAMES / float(fps) * 50 - 2


def test_chunks_are_told_before_their_first_picture_and_packets_know_theirs():
    stage = Stage()
    stage.play(4)
    stage.run(stage.clock.now + 1)
    told, order = [head for *_, head in stage.of("chunk")], []
    assert [(h["chunk"], h["frames"], h["first_frame"]) for h in told] == [(i, FRAMES, i * FRAMES) for i in range(4)]
    assert [h["pts"] for h in told] == [round(i * CHUNK_S * PICTURE_TICKS) for i in range(4)]
    for _, kind, _, head in stage.sent:
        if kind == "chunk":
            order.append(head["chunk"])
        elif kind == "video":
            assert head["chunk"] == order[-1]
        else:
            assert head["chunk"] == int(head["pts"] / SOUND_TICKS / CHUNK_S)
    assert order == [0, 1, 2, 3]


def test_slack_says_how_early_a_chunk_was():
    stage = Stage()
    stage.put()
    stage.run(stage.clock.now + MARGIN_S + CHUNK_S - 0.2)
    stage.put()  # 0.2 s before it is due
    stage.run(stage.clock.now + 0.2 + CHUNK_S + 0.3)
    stage.put()  # 0.3 s after
    stage.run(stage.clock.now + 0.1)
    slacks = [head["slack_s"] for *_, head in stage.of("chunk")]
    assert slacks == pytest.approx([MARGIN_S, 0.2, -0.3], abs=2e-3)


def test_a_late_chunk_moves_pictures_and_sound_by_the_same():
    stage = Stage()
    zero = stage.clock.now + MARGIN_S
    stage.put()
    stage.run(zero + CHUNK_S + 0.4)
    before = len(stage.sent)
    stage.put()
    stage.play(2)
    late = [(at - zero, kind, head) for at, kind, _, head in stage.sent[before:] if kind != "chunk"]
    moved = {"video": [], "sound": []}
    for at, kind, head in late:
        due = head["pts"] / (PICTURE_TICKS if kind == "video" else SOUND_TICKS)
        moved[kind].append(at - due)
    assert 0.4 <= moved["sound"].pop(0) < 0.42 + 3e-3  # half of it had come before, and waited for the other half
    for kind in moved:
        assert moved[kind] == pytest.approx([0.4] * len(moved[kind]), abs=3e-3), kind
    assert [h["pts"] for _, _, h in stage.of("video")] == [
        round(i * PICTURE_TICKS / FPS) for i in range(len(stage.of("video")))
    ]


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8))
def test_whenever_chunks_come_nothing_leaves_early_out_of_order_or_is_left_out(gaps):
    stage = Stage(sound=False, codecs=())
    zero = stage.clock.now + MARGIN_S
    for gap in gaps:
        stage.put()
        stage.clock.now += max(gap, CHUNK_S / 4) if len(stage.player._chunks) < AHEAD else CHUNK_S + gap
        stage.player.step(stage.clock.now)
    while stage.player._chunks:
        stage.clock.now += 0.5
        stage.player.step(stage.clock.now)
    chunks = stage.of("chunk")
    assert [head["chunk"] for *_, head in chunks] == list(range(len(gaps)))
    for at, _, head in chunks:
        assert at >= zero + head["pts"] / PICTURE_TICKS - 1e-6


def test_who_makes_chunks_too_fast_waits_for_room_and_is_let_go_by_the_end():
    stage = Stage(sound=False)
    for _ in range(AHEAD):
        stage.put()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (stage.put(), done.set()))
    thread.start()
    stage.run(stage.clock.now + MARGIN_S + CHUNK_S)
    assert done.wait(PATIENT_S)
    held = threading.Thread(target=lambda: (stage.put(), stage.player.finish()))
    held.start()
    stage.player.close()
    held.join(PATIENT_S)
    thread.join(PATIENT_S)
    assert not held.is_alive() and not stage.player.wait(stage.clock)


def test_finish_waits_for_what_is_there():
    stage = Stage(sound=False)
    stage.put()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (stage.player.finish(), done.set()))
    thread.start()
    stage.run(stage.clock.now + MARGIN_S + CHUNK_S - 0.1)
    assert not done.is_set()
    stage.run(stage.clock.now + 0.2)
    assert done.wait(PATIENT_S)
    thread.join(PATIENT_S)


def test_mute_cuts_the_sound_with_a_fade_and_unmute_lets_it_back_with_a_chunk():
    stage = Stage()
    stage.play(1, tone=0.8)
    stage.put(tone=0.8)
    stage.run(stage.clock.now + 0.3)
    heard = stage.player.mute()
    cut = len(stage.of("sound"))
    assert heard == pytest.approx(cut * 0.02)
    stage.run(stage.clock.now + CHUNK_S - 0.3)
    stage.put(tone=0.8)
    stage.player.unmute(3)
    stage.run(stage.clock.now + CHUNK_S)
    stage.play(2, tone=0.8)
    loud = loudness([body for _, body, _ in stage.of("sound")])
    chunk = np.array([head["chunk"] for *_, head in stage.of("sound")])
    quiet = (np.arange(len(loud)) > cut) & (chunk < 3)
    assert loud[:cut][2:].min() > 0.4
    assert loud[quiet][3:].max() < 0.02  # the decoder needs a moment
    assert loud[chunk >= 3][3:].min() > 0.4
    assert len(stage.of("video")) >= 4 * FRAMES - 2  # pictures go on meanwhile


def test_the_fade_is_ten_milliseconds_and_done_once():
    stage = Stage()
    stage.player.mute()
    first, second = stage.player._gain(), stage.player._gain()
    assert first[0] == 1 and (np.diff(first[:FADE]) < 0).all() and not first[FADE:].any() and not second.any()
    stage.player.mute()  # muted already: nothing to fade
    assert not stage.player._gain().any()


def test_a_second_interrupt_before_the_first_shows_keeps_it_quiet():
    stage = Stage()
    stage.play(1, tone=0.8)
    stage.player.mute()
    stage.player.unmute(2)
    stage.player.mute()
    stage.play(3, tone=0.8)
    loud = loudness([body for _, body, _ in stage.of("sound")])
    assert loud[-10:].max() < 0.02


def test_without_sound_mute_says_how_much_was_seen():
    stage = Stage(sound=False)
    stage.put()
    stage.run(stage.clock.now + MARGIN_S + 6.5 / FPS)
    assert stage.player.mute() == 7 / FPS
    assert not stage.of("sound")


def test_every_second_picture():
    stage = Stage()
    stage.player.rate(None, 2)
    stage.play(2)
    stage.run(stage.clock.now + 1)
    sent = [head["pts"] for *_, head in stage.of("video")]
    assert sent == [round(i * PICTURE_TICKS / FPS) for i in range(0, 2 * FRAMES, 2)]
    assert len(stage.of("chunk")) == 2


@pytest.mark.parametrize("every", [1, 2])
def test_a_key_frame_comes_with_the_next_picture_that_is_due_and_only_then(every):
    stage = Stage()
    stage.player.rate(None, every)
    stage.play(1)
    stage.put()
    stage.run(stage.clock.now + 3.5 / FPS)
    before = len(stage.of("video"))
    at, asked = stage.clock.now, stage.player.key
    asked()
    stage.run(at + 1.5 / FPS)
    keys = [index for index, (_, _, head) in enumerate(stage.of("video")) if head["key"]]
    assert keys == [0, before]
    assert stage.of("video")[before][0] - at <= 1 / FPS + 2e-3


def test_only_codecs_that_are_wanted_are_coded_and_a_new_one_begins_with_a_key():
    stage = Stage(codecs=())
    stage.play(1)
    assert not stage.of("video") and not stage.of("sound") and len(stage.of("chunk")) == 1
    stage.player.want(["h264"])
    stage.play(1)
    stage.player.want(["h264", "vp8"])
    stage.play(1)
    stage.player.want(["vp8"])
    at = stage.clock.now
    stage.play(1)
    by = {codec: [h["key"] for _, _, h in stage.of("video") if h["codec"] == codec] for codec in ("h264", "vp8")}
    assert by["h264"] == [True] + [False] * (len(by["h264"]) - 1) and len(by["h264"]) == 2 * FRAMES
    assert by["vp8"] == [True] + [False] * (len(by["vp8"]) - 1)
    assert all(head["codec"] == "vp8" for when, _, head in stage.of("video") if when > at)


def test_a_key_frame_of_a_codec_that_is_wanted_no_more_is_forgotten():
    """Else every picture would be coded from then on for one that is still asked for."""
    stage = Stage(codecs=("h264", "vp8"))
    stage.play(1)
    stage.player.rate(None, 2)
    stage.player.key()
    stage.player.want(["h264"])
    before = len(stage.of("video"))
    stage.play(1)
    assert len(stage.of("video")) - before <= FRAMES // 2 + 1


def test_a_rate_holds_for_coders_that_are_there_and_that_come():
    stage = Stage()
    stage.player.rate(200_000, 1)
    stage.player.want(["h264", "vp8"])
    stage.play(1)
    assert {coder._bits for coder in stage.player._wanted.values()} == {200_000}
    stage.player.rate(None, 1)
    assert min(coder._bits for coder in stage.player._wanted.values()) > 200_000


def test_for_thin_lines_pictures_are_coded_a_second_time_at_a_rate_of_its_own():
    stage = Stage()
    stage.player.rate(200_000, 2, thin=True)
    stage.player.want(["h264"], ["h264"])
    stage.play(2)
    stage.run(stage.clock.now + 1)
    rich, thin = ([h for *_, h in stage.of("video") if h["thin"] == one] for one in (False, True))
    assert len(rich) == 2 * FRAMES and len(thin) == FRAMES
    assert [head["key"] for head in thin] == [True] + [False] * (FRAMES - 1)
    assert [coder._bits for coder in stage.player._wanted.values()][1] == 200_000


@pytest.mark.parametrize("sound", [True, False])
def test_the_end_is_told_when_the_last_picture_and_all_sound_are_sent(sound):
    """Not when they were taken to be sent: whoever waits closes the connection."""
    stage, sent = Stage(sound=sound), []
    last, slow = threading.Event(), threading.Event()
    send = stage.player._send

    def held(kind, body, **head):
        if len(stage.of("video")) == FRAMES - 1 and kind == "video":
            last.set()
            slow.wait(PATIENT_S)
        send(kind, body, **head)

    stage.player._send = held
    stage.put()
    thread = threading.Thread(target=lambda: sent.append(stage.player.finish()))
    thread.start()
    playing = threading.Thread(target=lambda: stage.run(stage.clock.now + MARGIN_S + CHUNK_S + 0.05))
    playing.start()
    assert last.wait(PATIENT_S)
    thread.join(0.1)
    assert playing.is_alive() and thread.is_alive()
    slow.set()
    for one in (playing, thread):
        one.join(PATIENT_S)
    packets = -(-FRAMES * SOUND_TICKS // FPS // PACKET) if sound else 0
    assert sent == [True] and len(stage.of("video")) == FRAMES and len(stage.of("sound")) == packets


def test_the_end_is_not_waited_for_where_nothing_is_sent_any_more():
    stage = Stage()
    stage.put()
    assert stage.player.finish(0.01) is False
