"""Video files that tests make: their frames carry their own numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LOSSLESS = {
    "nut": ("nut", "rawvideo", "rgb24"),
    "mkv": ("matroska", "ffv1", "bgr0"),
    "avi": ("avi", "ffv1", "bgr0"),
    "mp4": ("mp4", "libx264rgb", "rgb24"),
}
"""Container, codec and format of files that keep every bit, by the end of their names."""


def numbered(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Frames uint8 [count, height, width, 3] of one colour each, which is the frame's number."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0], frames[..., 1] = (np.arange(count) % 256)[:, None, None], (np.arange(count) // 256)[:, None, None]
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """What `numbered` frames say."""
    return [int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 1]) for frame in frames]


def moving(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames uint8 [count, height, width, 3] of noise in which everything moves, at first a little."""
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 256, (height, width, 3)).astype(np.int16)
    steps = [rng.integers(-n, n + 1, still.shape).astype(np.int16) for n in range(1, count + 1)]
    return np.stack([np.clip(still + step, 0, 255).astype(np.uint8) for step in steps])


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction | int,
    times: Sequence[int] | None = None,
    clock: Fraction | None = None,
    options: dict[str, str] | None = None,
    sound: bool = False,
    aspect: Fraction | None = None,
) -> Path:
    """A video that keeps every bit, of the kind that the name's end says.

    Args:
        frames: uint8 [H, W, 3] each.
        rate: frames a second.
        times: of each frame, in ticks of `clock`; None: they are as far apart as the rate says.
        clock: seconds of a tick; None: that of one frame.
        options: of the container.
        sound: whether there is a sound track, before the pictures.
        aspect: width of a pixel by its height; None: nothing is said.
    """
    container_of, codec, pixels = LOSSLESS[path.suffix[1:]]
    with av.open(str(path), "w", format=container_of, options=options or {}) as container:
        track, heard = None, container.add_stream("pcm_s16le", 16000, layout="mono") if sound else None
        for number, picture in enumerate(frames):
            if track is None:
                track = container.add_stream(codec, rate=Fraction(rate))
                track.height, track.width = picture.shape[:2]
                track.pix_fmt, track.options = pixels, {"qp": "0"} if codec == "libx264rgb" else {}
                if aspect:
                    track.codec_context.sample_aspect_ratio = aspect
                if clock:
                    track.codec_context.time_base = clock
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, clock or 1 / Fraction(rate)
            container.mux(track.encode(frame))
            if heard:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 16000, 1000 * number, Fraction(1, 16000)
                container.mux(heard.encode(silence))
        for each in (track, heard) if heard else (track,):
            container.mux(each.encode())
    return path


def turn_clockwise(path: Path) -> Path:
    """Have the header of an mp4 say that its pictures are to be turned by 90 degrees, as phones do."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    return path
