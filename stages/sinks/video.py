"""Frames and sound to an mp4 file, as they come.

The file is fragmented: about every second what was made so far is complete on disk, so a process that is killed
leaves a file that plays up to its last second, and the muxer keeps no table that grows. The header is written with
the first fragment, when the sound encoder's delay is known, so that the edit list can take it back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import Flags

from conf import disk
from conf.errors import UserError
from stages.rate import frame_rate

SOUND_RATE = 16000  # of the samples given
TRACK_RATE = 48000  # of the track: AAC delays by 1024 samples of this
X264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "20", "threads": "1", "sc_threshold": "0"}
FRAGMENTED = {"movflags": "delay_moov+default_base_moof+frag_keyframe+skip_trailer"}
BT709, LIMITED_RANGE = 1, 1
MARK = "comment"
"""The entry of a file's metadata that says whose it is."""
REFUSED = (OSError, av.FFmpegError)
"""What a file that cannot be written raises: not all of FFmpeg's errors are the system's."""


def check(path: str | Path, height: int, width: int) -> None:
    """Refuse a video that `VideoSink` could not make, by its name and its size in pixels.

    Raises:
        UserError: it is no mp4, or a side is odd.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"sink.video={path}", "video is written as mp4", f"name it {path.stem or 'video'}.mp4")
    for side, pixels in (("height", height), ("width", width)):
        if pixels < 2 or pixels % 2:
            even = max(2, pixels // 2 * 2)
            raise UserError(f"stream.{side}={pixels}", "H.264 needs even sizes", f"use {even} or {even + 2}")


class VideoSink:
    """H.264 (yuv420p, BT.709), with AAC sound if asked for, in a fragmented mp4.

    Frame i is shown at i / fps and sound sample j is heard at j / 16000, exactly and for ever. The picture leads: sound
    ahead of it waits, and when the sink is closed the sound is filled up with silence or cut to the picture's length.

    Args:
        path: the file, `*.mp4`; it is replaced, and its folder made.
        fps: frames per second.
        height: of the picture in pixels, even.
        width: of the picture in pixels, even.
        sound: whether there is a sound track.
        mark: kept in the file, so that it is known from another stream's; None: none.

    Raises:
        UserError: the size is odd, or the file cannot be made; nothing is left behind then.
    """

    def __init__(
        self, path: str | Path, fps: float, height: int, width: int, sound: bool = False, mark: str | None = None
    ):
        self.path, self.height, self.width = Path(path), height, width
        self._fps = frame_rate(fps)
        self.frames = 0  # written so far
        self._whole = 0  # bytes on disk that end with a fragment
        self._cut = False
        self._container = self._made = None
        try:
            check(self.path, height, width)
            disk.prepare(self.path)
            # The encoders are opened before the file is touched.
            self._container = av.open(f"file:{self.path}", "w", format="mp4", options=FRAGMENTED)
            self._container.flags |= Flags.flush_packets.value
            set_mark(self._container, mark)
            self._picture = self._picture_track()
            self._sound = _SoundTrack(self._container) if sound else None
            self._made = not self.path.exists()
            self.path.open("ab").close()
            self._container.start_encoding()
        except (*REFUSED, ValueError) as error:
            self._discard(remove=self._made)
            raise self._unwritable(error) from error

    def write(self, frames: np.ndarray, sound: np.ndarray | None = None) -> None:
        """Append frames, uint8 [n, H, W, 3] RGB, and their sound, float32 [m] in [-1, 1] at 16 kHz mono.

        In the long run m is 16000 n / fps; from call to call it may differ. None is silence for these frames.

        Raises:
            UserError: the file cannot be written any more; what was written so far stays, if there is a second of it.
            ValueError: the frames are of another size than the sink's, or sound was given to a sink without.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            expected = f"uint8 [n, {self.height}, {self.width}, 3]"
            raise ValueError(f"frames must be {expected}, got {frames.dtype} {list(frames.shape)}")
        if sound is not None and self._sound is None:
            raise ValueError("this video has no sound track: open it with sound=True")
        if self._container is None:
            raise ValueError(f"{self.path} is closed")
        with self._writing():
            for frame in frames:
                self._mux(self._picture.encode(self._video_frame(frame)))
                self.frames += 1
            if self._sound is not None:
                if sound is None:
                    self._sound.fill(self._samples())
                else:
                    self._sound.add(sound)
                self._mux(self._sound.encode(self._samples()))

    def cut(self) -> None:
        """Begin a fragment with the next frame: once a second or so more is written, all before it is on disk."""
        self._cut = True

    def close(self) -> None:
        """Finish the file; without a single frame it is removed. Closing again does nothing.

        Raises:
            UserError: the last second could not be written.
        """
        if self._container is None:
            return
        if not self.frames:
            self._discard(remove=True)
            return
        with self._writing():
            if self._sound is not None:
                self._sound.fill(self._samples())
                self._mux(self._sound.encode(self._samples(), last=True))
            self._mux(self._picture.encode(None))
            self._container.close()
            self._container = None

    def _mux(self, packets: list[av.Packet]) -> None:
        self._container.mux(packets)
        self._whole = self.path.stat().st_size  # only whole fragments leave the muxer

    def _samples(self) -> int:
        """Sound samples for the picture so far."""
        return self.frames * SOUND_RATE // self._fps

    def _picture_track(self) -> av.VideoStream:
        track = self._container.add_stream("libx264", rate=self._fps, options=X264)
        track.width, track.height, track.pix_fmt = self.width, self.height, "yuv420p"
        context = track.codec_context
        context.time_base = 1 / self._fps
        context.gop_size = max(1, round(self._fps))  # a key frame starts a fragment
        context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        context.open()
        return track

    def _video_frame(self, pixels: np.ndarray) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1)
        frame.pts, frame.time_base = self.frames, 1 / self._fps
        if self._cut:
            frame.pict_type, self._cut = av.video.frame.PictureType.I, False
        return frame

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the disk refuses into a user's error, with the file cut after its last whole fragment."""
        try:
            yield
        except REFUSED as error:
            self._discard(remove=not self._whole)
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._whole)
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> UserError:
        kept = f"the file plays up to about frame {self.frames}; " if self._whole else ""
        return disk.unwritable(f"sink.video={self.path}", error, remedy=kept + disk.REMEDY)

    def _discard(self, remove: bool) -> None:
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(*REFUSED):
                container.close()
        if remove:
            disk.remove(self.path)


def set_mark(container: av.container.OutputContainer, mark: str | None) -> None:
    """Have a file that is about to be written carry a mark."""
    if mark is not None:
        container.metadata[MARK] = mark


def mark_of(video: str | Path) -> str | None:
    """The mark that a video carries; None: none.

    Raises:
        OSError, av.FFmpegError: it cannot be read.
    """
    with av.open(f"file:{video}") as container:
        return container.metadata.get(MARK)


class _SoundTrack:
    """16 kHz mono in, 48 kHz AAC packets out, never beyond a given sample."""

    def __init__(self, container: av.container.OutputContainer):
        self._track = container.add_stream("aac", rate=TRACK_RATE, layout="mono")
        self._track.codec_context.open()
        self._resampler = av.AudioResampler("fltp", "mono", TRACK_RATE, frame_size=1024)
        self._waiting = np.zeros(0, np.float32)
        self._encoded = 0  # samples given to the encoder

    def add(self, samples: np.ndarray) -> None:
        """Append samples [m] that may be ahead of the picture."""
        samples = np.clip(np.asarray(samples, np.float32).reshape(-1), -1.0, 1.0)
        self._waiting = np.concatenate([self._waiting, samples])

    def fill(self, until: int) -> None:
        """Append silence up to sample `until`."""
        missing = until - self._encoded - len(self._waiting)
        if missing > 0:
            self.add(np.zeros(missing, np.float32))

    def encode(self, until: int, last: bool = False) -> list[av.Packet]:
        """Packets of the samples before `until`; with `last`, all that the encoder holds, and the rest is cut."""
        samples, self._waiting = np.split(self._waiting, [max(0, until - self._encoded)])
        frames = []
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, self._encoded, Fraction(1, SOUND_RATE)
            self._encoded += len(samples)
            frames = self._resampler.resample(frame)
        if last:
            frames = [*frames, *self._resampler.resample(None), None]
        return [packet for frame in frames for packet in self._track.encode(frame)]
