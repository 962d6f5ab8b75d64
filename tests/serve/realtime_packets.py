"""Packets as a session's stages send them: H.264 and Opus from the encoders that are really used."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import av
import numpy as np

from serve.media import PACKET_SAMPLES, SOUND_RATE, VIDEO_RATE, Packet

WIDTH = HEIGHT = 64
FPS, CHUNK = 20, 8
X264 = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline", "threads": "1"}


@cache
def pictures(frames: int, keys: tuple[int, ...] = (0,), width: int = WIDTH) -> tuple[Packet, ...]:
    """Frames at FPS, each of its own grey; `keys` are the numbers of key frames."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, HEIGHT, "yuv420p"
    encoder.framerate, encoder.time_base, encoder.gop_size = Fraction(FPS), Fraction(1, FPS), 10_000
    encoder.options = X264
    found = []
    for i in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((HEIGHT * 3 // 2, width), 128, np.uint8), format="yuv420p")
        np.asarray(frame.planes[0])[:] = grey(i)
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        frame.pict_type = av.video.frame.PictureType.I if i in keys else av.video.frame.PictureType.NONE
        (coded,) = encoder.encode(frame)
        found.append(Packet("video", "h264", bytes(coded), i * VIDEO_RATE // FPS, coded.is_keyframe, i // CHUNK))
    return tuple(found)


def grey(frame: int) -> int:
    """Luminance of frame `frame`; the codec keeps it to within 2."""
    return 40 + 5 * (frame % 32)


@cache
def sound(packets: int) -> tuple[Packet, ...]:
    """A tone in packets of 20 ms."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = SOUND_RATE, "mono", "s16"
    found = []
    for j in range(packets):
        at = np.arange(j * PACKET_SAMPLES, (j + 1) * PACKET_SAMPLES)
        tone = (8000 * np.sin(2 * np.pi * 440 / SOUND_RATE * at)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SOUND_RATE, j * PACKET_SAMPLES
        found += encoder.encode(frame)
    coded = [bytes(packet) for packet in (*found, *encoder.encode(None))][:packets]
    per_chunk = CHUNK * SOUND_RATE // FPS
    return tuple(
        Packet("sound", "opus", data, j * PACKET_SAMPLES, True, j * PACKET_SAMPLES // per_chunk)
        for j, data in enumerate(coded)
    )


def due(packet: Packet) -> float:
    """When a packet leaves, in seconds of the session's clock."""
    return packet.pts / (VIDEO_RATE if packet.kind == "video" else SOUND_RATE)


@cache
def both(seconds: float, keys: tuple[int, ...] = (0,)) -> tuple[Packet, ...]:
    """Pictures and sound in the order in which they leave."""
    made = (*pictures(round(seconds * FPS), keys), *sound(round(seconds * 50)))
    return tuple(sorted(made, key=due))
