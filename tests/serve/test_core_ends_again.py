"""Both ends of the connection of a session's sink, over the loopback address: a second sink goes on for the first."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from serve.ends import Ends
from serve.link import Link
from serve.media import Packet
from stages.sinks.session import SessionSink
from tests.patience import PATIENT_S

FPS, FRAMES, SIZE, CHUNKS = 240, 24, 32, 6
SOUNDS = FRAMES * 16_000 // FPS


class Ears:
    """Remembers what stages say (`serve.ends.Listener`)."""

    def __init__(self):
        self.packets: list[Packet] = []
        self.chunks: list[int] = []
        self.lost: list[str] = []
        self.news = asyncio.Event()

    def chunk(self, head: dict) -> None:
        self.chunks.append(head["chunk"])

    def packet(self, packet: Packet) -> None:
        self.packets.append(packet)
        self.news.set()

    def gone(self, why: str) -> None:
        self.lost.append(why)
        self.news.set()

    def failed(self, why: str) -> None:
        raise AssertionError(why)


def play(sink: SessionSink, chunks: range) -> None:
    for _ in chunks:
        sink.write(np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8), np.zeros(SOUNDS, np.float32))


def test_a_second_sink_goes_on_where_the_gateway_says_that_viewers_are():
    async def work():
        link, ears = Link("127.0.0.1"), Ears()
        await link.open()
        ends = Ends(link, 0.05, ears)
        address = ends.open(once=False)["sink"]["session"]
        ends.want(["h264"], [])
        first = await asyncio.to_thread(SessionSink, address, FPS, SIZE, SIZE, True)
        await asyncio.to_thread(play, first, range(4))
        cut = min(4, first.seen)
        await asyncio.to_thread(first.leave)
        while not ears.lost:
            ears.news.clear()
            await ears.news.wait()
        second = await asyncio.to_thread(SessionSink, address, FPS, SIZE, SIZE, True, cut, cut * FRAMES)
        await asyncio.to_thread(play, second, range(cut, CHUNKS))
        closing = threading.Thread(target=second.close)
        closing.start()
        await asyncio.to_thread(closing.join, PATIENT_S)
        ends.close()
        await link.close()
        assert ears.lost == ["its stage has gone"] and ears.chunks == list(range(CHUNKS))
        pictures = [packet for packet in ears.packets if packet.kind == "video"]
        assert [packet.pts for packet in pictures] == [round(i * 90_000 / FPS) for i in range(CHUNKS * FRAMES)]
        assert sum(packet.key for packet in pictures) == 2
        sounds = [packet.pts for packet in ears.packets if packet.kind == "sound"]
        assert sounds == [960 * i for i in range(len(sounds))] and len(sounds) == CHUNKS * FRAMES * 50 // FPS

    asyncio.run(asyncio.wait_for(work(), PATIENT_S))
