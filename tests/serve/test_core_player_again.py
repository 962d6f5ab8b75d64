"""A player that goes on where another was lost: viewers see and hear nothing twice, and nothing is left out."""

from __future__ import annotations

import av
import numpy as np
import pytest

from serve.media import Packet
from serve.seen import Seen
from stages.sinks.coded import PACKET, PICTURE_TICKS, SOUND_TICKS
from stages.sinks.player import Begin, Made, Player
from tests.serve.core_ends import Clock

FPS, FRAMES, SIZE, CHUNKS = 16, 12, 32, 6
CHUNK_S, MARGIN_S = FRAMES / FPS, 0.08
SOUNDS = round(16_000 * CHUNK_S)


def made(number: int, silent: bool = False) -> Made:
    """A chunk of a stream whose pictures grow brighter, and whose sound is one tone."""
    bright = 10 + 3 * np.arange(number * FRAMES, (number + 1) * FRAMES, dtype=np.uint8)
    at = np.arange(number * SOUNDS, (number + 1) * SOUNDS) / 16_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    return Made(number, np.broadcast_to(bright[:, None, None, None], (FRAMES, SIZE, SIZE, 3)), None if silent else tone)


class House:
    """Players one after the other, and what they have sent, as a gateway has it."""

    def __init__(self, sound: bool = True, codecs=("h264",)):
        self.clock, self.sent, self.sounds, self.codecs = Clock(), [], sound, list(codecs)
        self.seen = Seen(self.clock)
        self.open()

    def open(self, first: int = 0, again: bool = False, every: int = 1) -> None:
        begin = Begin.of(self.seen.told() if again else {}, first * FRAMES)
        self.player = Player(FPS, SIZE, SIZE, self.sounds, self._send, MARGIN_S, begin=begin)
        self.player.want(self.codecs)
        self.player.rate(None, every)
        self.seen.start(FPS)

    def _send(self, kind: str, body: bytes, **head) -> None:
        self.sent.append((self.clock.now, kind, body, head))
        if kind == "chunk":
            self.seen.chunk(head)
        else:
            codec = head.get("codec", "opus")
            self.seen.packet(Packet(kind, codec, body, head["pts"], head.get("key", False), head["chunk"]))

    def play(self, chunks: range) -> None:
        """Chunks, each there shortly before it is due."""
        for number in chunks:
            self.player.put(made(number, not self.sounds), self.clock)
            left = (number + 1) * FRAMES - max(self.player._frame, number * FRAMES)
            self.run(max(0.0, left / FPS) if left > 0 else 0.0)

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 1e-3)
            self.player.step(self.clock.now)

    def of(self, kind: str) -> list[tuple[float, bytes, dict]]:
        return [(at, body, head) for at, one, body, head in self.sent if one == kind]


def heard(packets: list[bytes]) -> np.ndarray:
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = SOUND_TICKS, "mono"
    parts = [one.to_ndarray().reshape(-1) for body in packets for one in decoder.decode(av.Packet(body))]
    return np.concatenate(parts) / 32768


def brightness(pictures: list[bytes]) -> list[float]:
    """Of each picture as a viewer decodes it, who began with the first of them."""
    decoder, found = av.CodecContext.create("h264", "r"), []
    for body in pictures:
        found += [one.to_ndarray(format="rgb24").mean() for one in decoder.decode(av.Packet(body))]
    return found + [one.to_ndarray(format="rgb24").mean() for one in decoder.decode(None)]


@pytest.mark.parametrize("lost_s", [0.0, 0.3, 2 * CHUNK_S - 0.01, 2 * CHUNK_S, 2 * CHUNK_S + 0.4, 3 * CHUNK_S + 0.1])
@pytest.mark.parametrize("back", [0, 1, 2])
def test_another_begins_where_the_first_was_lost_in_the_middle_of_a_chunk(lost_s, back):
    house = House()
    house.player.put(made(0), house.clock)
    zero, number = house.clock.now + MARGIN_S, 1
    while house.clock.now < zero + lost_s:
        if house.clock.now >= zero + (number - 1) * CHUNK_S + 0.1:
            house.player.put(made(number), house.clock)
            number += 1
        house.run(0.01)
    before, pictures = len(house.sent), len(house.of("video"))
    cut = max(0, house.player.seen - back)  # a cut that all before it has left for
    house.clock.now += 2.5
    house.open(first=cut, again=True)
    house.play(range(cut, CHUNKS))
    house.run(1.0)
    house.player.finish(0.0)
    house.run(0.1)
    assert [head["chunk"] for *_, head in house.of("chunk")] == list(range(CHUNKS))
    assert [head["first_frame"] for *_, head in house.of("chunk")] == [i * FRAMES for i in range(CHUNKS)]
    ticks = [head["pts"] for *_, head in house.of("video")]
    assert ticks == [round(i * PICTURE_TICKS / FPS) for i in range(CHUNKS * FRAMES)]
    sounds = [head["pts"] for *_, head in house.of("sound")]
    assert sounds == [i * PACKET for i in range(len(sounds))] and len(sounds) >= CHUNKS * CHUNK_S * 50 - 1
    keys = [index for index, (*_, head) in enumerate(house.of("video")) if head["key"]]
    assert keys == sorted({0, pictures})  # a decoder goes on with the first new picture
    light = brightness([body for _, body, _ in house.of("video")])
    assert np.abs(np.array(light) - (10 + 3 * np.arange(CHUNKS * FRAMES))).max() < 6
    # The sound is where it belongs: against the tone itself, but for where an encoder begins.
    at = sounds[len([1 for *_, kind, _, _ in house.sent[:before] if kind == "sound"])]
    loud = heard([body for _, body, head in house.of("sound") if head["pts"] >= at])
    whole = House()
    whole.play(range(CHUNKS))
    whole.run(1.0)
    same = heard([body for _, body, head in whole.of("sound")])[at:]
    settled, count = 25 * PACKET, min(len(loud), len(same))
    assert count > settled and np.abs(loud[settled:count] - same[settled:count]).max() < 0.02  # a sample is 0.029


def test_the_first_new_picture_is_due_a_margin_after_it_is_there_and_the_rest_follows_it():
    house = House()
    house.play(range(2))
    left = len(house.of("video"))
    house.clock.now += 4.0
    house.open(first=1, again=True)
    now = house.clock.now
    house.play(range(1, 4))
    new = house.of("video")[left:]
    for index, (at, *_) in enumerate(new):
        assert 0 <= at - (now + MARGIN_S + index / FPS) < 2e-3
    # What follows is shown later by all the time that nothing was shown, which is told once.
    assert house.seen.later() == pytest.approx(new[0][0] - house.of("video")[left - 1][0] - 1 / FPS, abs=2e-3)
    assert house.seen.later() == 0


def test_where_nobody_watches_the_chunk_is_told_once_and_times_go_on():
    house = House(codecs=())
    house.play(range(3))
    house.run(0.2)
    house.open(first=2, again=True)
    house.player.want(["h264"])
    house.play(range(2, 5))
    house.run(1.0)
    assert [head["chunk"] for *_, head in house.of("chunk")] == list(range(5))
    assert house.of("video")[0][2]["pts"] >= 2 * CHUNK_S * PICTURE_TICKS
    first = house.of("sound")[0][2]["pts"]
    assert first % PACKET == 0 and abs(first / SOUND_TICKS - 2 * CHUNK_S) < 0.02


def test_at_half_the_rate_the_next_picture_is_the_next_that_was_not_seen():
    house = House()
    house.player.rate(None, 2)
    house.play(range(2))
    house.open(first=1, again=True, every=2)
    house.play(range(1, 3))
    house.run(1.0)
    ticks = [head["pts"] for *_, head in house.of("video")]
    assert len(set(ticks)) == len(ticks) and ticks == sorted(ticks)


@pytest.mark.parametrize(("loud_from", "loud"), [(None, False), (3, True)])
def test_what_was_muted_stays_so_until_the_chunk_that_is_to_be_heard(loud_from, loud):
    house = House()
    house.play(range(2))
    house.seen.mute()
    if loud_from is not None:
        house.seen.unmute(loud_from)
    left = len(house.of("sound"))
    house.open(first=2, again=True)
    house.play(range(2, 5))
    house.run(1.0)
    new = house.of("sound")[left:]
    chunk = np.array([head["chunk"] for *_, head in new])
    levels = np.abs(heard([body for _, body, _ in new]).reshape(-1, PACKET)).max(axis=1)
    assert levels[chunk < 3].max() < 0.02
    assert (levels[chunk >= 3][3:].min() > 0.3) == loud


@pytest.mark.parametrize("sound", [True, False])
def test_a_chunk_counts_as_seen_when_its_last_picture_and_its_sound_have_left(sound):
    house, found = House(sound=sound), []
    house.player.put(made(0, not sound), house.clock)
    zero = house.clock.now + MARGIN_S
    for number in range(1, 5):
        house.run(zero + (number - 0.1) * CHUNK_S - house.clock.now)
        found.append(house.player.seen)
        house.player.put(made(number, not sound), house.clock)
    house.run(0.1)
    assert found == [0, 1, 2, 3]  # a tenth of a chunk is still to come
    assert house.player.seen == 4


def test_what_a_gateway_must_not_say_is_refused():
    with pytest.raises((KeyError, TypeError, ValueError)):
        Begin.of({"again": True, "chunk": "many", "frame": 0, "sound_at": 0, "muted": False, "loud_from": None}, 0)
    assert Begin.of({"margin_s": 1.0}, 96) == Begin()
