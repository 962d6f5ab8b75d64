"""The microphone: order, losses, places on its time line, and the whole way from a peer."""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc import MediaStreamTrack

from serve.microphone import AHEAD_S, FARTHEST, RTP_RATE, InOrder, Resampled
from tests.serve.browser import Browser, Room, opus, soon, until

STEP = 960


class Hands:
    """A clock that goes by hand."""

    now = 50.0

    def __call__(self):
        return self.now


def given(order: InOrder, clock: Hands, numbers, first=65530, stamp=2**32 - 5000, source=7) -> list[list[int]]:
    """Packets by number; the sequence numbers and time stamps of all wrap around. What each brought, by number."""
    found = []
    for number in numbers:
        clock.now = max(clock.now, 50 + number * 0.02)
        heard = order.add(source, (first + number) & 0xFFFF, (stamp + number * STEP) & 0xFFFFFFFF, bytes([number]))
        assert [h.position for h in heard] == [h.data[0] * STEP for h in heard]
        found.append([h.data[0] for h in heard])
    return found


@pytest.mark.parametrize(
    ("numbers", "heard", "lost"),
    [
        ([0, 1, 2], [[0], [1], [2]], 0),
        ([0, 2, 1, 3], [[0], [], [1, 2], [3]], 0),
        ([0, 2, 3, 4], [[0], [], [2, 3], [4]], 1),
        ([0, 2, 3, 1, 4], [[0], [], [2, 3], [], [4]], 1),
        ([0, 1, 1, 2, 0, 3], [[0], [1], [], [2], [], [3]], 0),
        ([0, 4, 4, 5, 6], [[0], [], [], [4, 5], [6]], 3),
        ([0, 2, 100, 101], [[0], [], [2, 100], [101]], 98),
        ([5, 3, 6], None, None),
    ],
)
def test_order(numbers, heard, lost):
    clock = Hands()
    order = InOrder(clock)
    if heard is None:  # what comes before the first has no place
        assert [len(order.add(7, n, n * STEP, b"x")) for n in numbers] == [1, 0, 1]
        return
    assert given(order, clock, numbers) == heard
    assert order.lost == lost


def test_any_losses_and_swaps_keep_order_and_places():
    choice = random.Random(3)
    for _ in range(50):
        numbers = [number for number in range(120) if number == 0 or choice.random() > 0.2]
        for at in range(1, len(numbers) - 1):  # the first stays the first
            if choice.random() < 0.2:
                numbers[at], numbers[at + 1] = numbers[at + 1], numbers[at]
        clock = Hands()
        found = [number for step in given(InOrder(clock), clock, numbers) for number in step]
        assert found == sorted(set(found))
        assert len(found) >= 0.7 * len(numbers)


def test_nothing_is_held_but_for_a_missing_packet():
    """After a loss every packet is handed on the moment it comes, for good."""
    clock = Hands()
    order = InOrder(clock)
    given(order, clock, [0, 2, 3])
    assert given(order, clock, range(4, 60)) == [[number] for number in range(4, 60)]
    assert FARTHEST > 60


def test_another_source_goes_on_where_the_clock_stands():
    clock = Hands()
    order = InOrder(clock)
    order.add(1, 10, 1000, b"a")
    clock.now += 3
    (heard,) = order.add(2, 60000, 77, b"b")
    assert heard.position == 3 * RTP_RATE
    (heard,) = order.add(2, 60001, 77 + STEP, b"c")
    assert heard.position == 3 * RTP_RATE + STEP


@pytest.mark.parametrize("jump", [-(10**6), 2**31 - 1, 2**31 + 5, round((AHEAD_S + 1) * RTP_RATE)])
def test_a_time_line_that_jumps_is_not_believed(jump):
    clock = Hands()
    order = InOrder(clock)
    order.add(1, 0, 5000, b"a")
    clock.now += 0.5
    (heard,) = order.add(1, 1, (5000 + jump) & 0xFFFFFFFF, b"b")
    assert heard.position == 0.5 * RTP_RATE
    (heard,) = order.add(1, 2, (5000 + jump + STEP) & 0xFFFFFFFF, b"c")
    assert heard.position == 0.5 * RTP_RATE + STEP


def test_silence_is_a_gap_however_long():
    clock = Hands()
    order = InOrder(clock)
    order.add(1, 0, 0, b"a")
    clock.now += 600
    (heard,) = order.add(1, 1, 600 * RTP_RATE, b"b")
    assert heard.position == 600 * RTP_RATE


def tone(position: int, count: int = STEP) -> av.AudioFrame:
    """48 kHz stereo of a 500 Hz tone, as it sounds at a position."""
    time = (position + np.arange(count)) / RTP_RATE
    samples = np.repeat((np.sin(2 * np.pi * 500 * time) * 10000).astype(np.int16), 2)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = RTP_RATE, position, Fraction(1, RTP_RATE)
    return frame


def test_resampled_sound_is_where_it_was_said():
    runs: dict[int, np.ndarray] = {}
    resampled = Resampled(lambda pcm, at: runs.setdefault(at, np.frombuffer(pcm, np.int16)))
    for number in [*range(10), *range(13, 20), *range(40, 45)]:
        resampled.add(tone(number * STEP))
    resampled.end()
    covered = np.zeros(45 * 320, bool)
    for at, samples in runs.items():
        assert not covered[at : at + len(samples)].any()
        covered[at : at + len(samples)] = True
        time = (at + np.arange(len(samples))) / 16000
        if len(samples) > 100:  # the filter fades where sound breaks off
            assert np.abs(samples - np.sin(2 * np.pi * 500 * time) * 10000)[24:-24].max() < 400
    for first, last, there in [(0, 10, True), (10, 13, False), (13, 20, True), (20, 40, False), (40, 45, True)]:
        assert (covered[first * 320 : last * 320] == there).all()


class Coded(MediaStreamTrack):
    """A microphone whose packets are coded already."""

    kind = "audio"

    def __init__(self, packets):
        super().__init__()
        self._packets = packets
        self._next = 0

    async def recv(self):
        if self._next >= len(self._packets):
            await asyncio.Event().wait()
        packet = av.Packet(self._packets[self._next])
        packet.pts, packet.time_base = self._next * STEP, Fraction(1, RTP_RATE)
        self._next += 1
        return packet


def test_a_microphone_is_heard_with_its_losses(monkeypatch):
    """From a peer, over RTP, with packets lost on the way: the others are at their places at 16 kHz."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: [])
    lost = {3, 4, 9}

    async def run():
        room, browser = Room(), Browser(microphone=Coded(opus(20)))
        sender = browser.connection.getTransceivers()[1].sender
        offer = browser.offer

        async def offer_and_lose():
            sdp = await offer()
            transport, sent = sender.transport, []
            send = transport._send_rtp

            async def lossy(data):
                if not 192 <= data[1] <= 208:
                    sent.append(data)
                    if len(sent) - 1 in lost:
                        return
                await send(data)

            transport._send_rtp = lossy
            return sdp

        browser.offer = offer_and_lose
        peer = await browser.call(room)
        await until(lambda: sum(count for _, count in room.sounds) >= (20 - len(lost)) * 320 - 16)
        await browser.close()
        await soon(peer.closed.wait())
        return room.sounds

    covered = np.zeros(20 * 320, int)
    for at, count in asyncio.run(run()):
        covered[at : at + count] += 1
    assert [bool(covered[n * 320 : n * 320 + 300].all()) for n in range(20)] == [n not in lost for n in range(20)]
    assert covered.max() == 1
