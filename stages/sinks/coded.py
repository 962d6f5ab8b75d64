"""Pictures and sound as live viewers take them: each is coded when it is due, and depends on none to come.

Rates and key frames are asked for while an encoder runs, and hold from the next picture on.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import av
import numpy as np

from conf.errors import UserError
from stages.rate import frame_rate

PICTURE_TICKS, SOUND_TICKS = 90_000, 48_000
"""Per second, of a coded picture's and of a packet of sound's time (RFC 6184, RFC 7741, RFC 7587)."""
PACKET = 960
"""Samples of a packet of sound: 20 ms."""
LEAST_BITS = 150_000
"""Bits per second below which a picture is worth nothing."""
START_BITS = 600_000
"""Before anything is known of a viewer's line."""
BITS_PER_PIXEL, SMALL_BITS = 0.35, 300_000
"""Of a picture that leaves nothing to wish for; and bits per second of a small one, which needs more."""
VBV_S = 0.3
"""Seconds of the rate that a single picture may take in advance: a key frame must not clog a thin line."""
SOUND_BITS = 48_000
STEP = 0.05
"""Changes of a rate by less are not followed."""
REOPEN = 0.2
"""Likewise, of an encoder that has to begin anew."""

X264 = {"preset": "superfast", "tune": "zerolatency", "threads": "1", "forced-idr": "1", "sc_threshold": "0"}
NVENC = {"preset": "p3", "tune": "ull", "rc": "cbr", "delay": "0", "zerolatency": "1", "forced-idr": "1"}
VPX = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "error-resilient": "1", "threads": "1"}
ENCODERS = {"h264": (("h264_nvenc", NVENC), ("libx264", X264)), "vp8": (("libvpx", VPX),)}
"""By codec, in the order in which they are tried. Most cards of data centres have no encoder."""
FOLLOWS = ("libx264", "h264_nvenc")
"""Encoders that take a new rate without beginning anew; libx264 only up to the rate it was opened with, and only
where its VBV is filled at that rate: any other keeps the rate it began with, and says nothing."""
I_FRAME, ANY = av.video.frame.PictureType.I, av.video.frame.PictureType.NONE


def most_bits(height: int, width: int, fps: float) -> int:
    """Bits per second that are worth spending on pictures of this size."""
    return max(SMALL_BITS, round(BITS_PER_PIXEL * height * width * fps))


class PictureCoder:
    """One running encoder: H.264 (Annex B, constrained baseline, parameter sets with every key frame), or VP8.

    Args:
        codec: `h264` or `vp8`.
        height, width: in pixels, even.
        fps: pictures per second.
        card: whether an encoder of a graphics card may be used.

    Raises:
        UserError: FFmpeg has no such encoder here.
    """

    def __init__(self, codec: str, height: int, width: int, fps: float, card: bool = False):
        self.codec, self._size, self._fps = codec, (height, width), frame_rate(fps)
        self._most = most_bits(height, width, fps)
        self._bits = min(self._most, START_BITS)
        self._choices = [one for one in ENCODERS[codec] if card or one[0] != "h264_nvenc"]
        self._encoder: av.VideoCodecContext | None = None

    def rate(self, bits_per_second: int | None) -> None:
        """From the next picture on; None: as much as is worth spending."""
        wanted = self._most if bits_per_second is None else min(self._most, max(LEAST_BITS, bits_per_second))
        change = abs(wanted - self._bits) / self._bits
        if self._encoder is None:
            self._bits = wanted
        elif self._encoder.name in FOLLOWS and change > STEP:
            self._bits = self._encoder.bit_rate = wanted
        elif change > REOPEN:
            self._bits, self._encoder = wanted, None

    def encode(self, picture: av.VideoFrame, pts: int, key: bool) -> tuple[bytes, bool]:
        """One picture, coded, and whether a decoder can begin with it; it does where `key` is asked for."""
        if self._encoder is None:
            self._encoder = self._opened(picture)
            key = True
        picture.pts, picture.time_base = pts, Fraction(1, PICTURE_TICKS)
        picture.pict_type = I_FRAME if key else ANY
        packets = self._encoder.encode(picture)
        return b"".join(bytes(packet) for packet in packets), any(packet.is_keyframe for packet in packets)

    def _opened(self, picture: av.VideoFrame) -> av.VideoCodecContext:
        refused: Exception | None = None
        for name, options in self._choices:
            try:
                return self._open(name, options)
            except (av.FFmpegError, ValueError) as error:
                refused = error
        raise UserError(
            f"a viewer's {self.codec}", f"no encoder could be opened ({refused})", "install PyAV's own wheel"
        )

    def _open(self, name: str, options: dict[str, str]) -> av.VideoCodecContext:
        encoder = av.CodecContext.create(name, "w")
        encoder.height, encoder.width = self._size
        encoder.pix_fmt, encoder.bit_rate = "yuv420p", self._most if name in FOLLOWS else self._bits
        encoder.time_base, encoder.framerate = Fraction(1, PICTURE_TICKS), self._fps
        encoder.max_b_frames, encoder.gop_size = 0, 1 << 20  # a key frame only where it is asked for
        limits = {"maxrate": str(self._most), "bufsize": str(round(VBV_S * self._most))}
        encoder.options = options | (limits if name in FOLLOWS else {})
        if name == "libx264":
            encoder.profile = "Baseline"
        encoder.open()
        encoder.bit_rate = self._bits
        return encoder


def planar(frame: np.ndarray) -> av.VideoFrame:
    """A picture uint8 [H, W, 3] RGB as encoders take it: yuv420p, BT.709, limited range."""
    made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return made.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1)


class SoundCoder:
    """16 kHz mono in, Opus packets of 20 ms out, each when it is due.

    Args:
        rate: samples per second of what is given.
        first: number of the sample, of 48 kHz, with which what is given begins.
        heard: samples that were heard already, a whole number of packets: what is given of them is left out, and what
            is missing between them and the first is silent.
    """

    def __init__(self, rate: int = 16_000, first: int = 0, heard: int = 0):
        self._rate, self._given = rate, 0
        self._resampler = av.AudioResampler("flt", "mono", SOUND_TICKS)
        self._waiting: deque[np.ndarray] = deque()
        self._coded, self._held, self._skip = heard, max(0, first - heard), max(0, heard - first)
        if self._held:
            self._waiting.append(np.zeros(self._held, np.float32))
        self._encoder = av.CodecContext.create("libopus", "w")
        self._encoder.sample_rate, self._encoder.layout, self._encoder.format = SOUND_TICKS, "mono", "flt"
        self._encoder.bit_rate = SOUND_BITS
        self._encoder.options = {"application": "voip", "frame_duration": "20"}
        self._encoder.open()

    @property
    def next(self) -> int:
        """Number of the sample, of 48 kHz, with which the next packet begins."""
        return self._coded

    @property
    def ready(self) -> bool:
        """Whether there is sound for a whole packet."""
        return self._held >= PACKET

    def give(self, samples: np.ndarray) -> None:
        """Append samples [n], float32 in [-1, 1]."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None], np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._given, Fraction(1, self._rate)
        self._given += len(samples)
        self._hold(frame)

    def end(self) -> None:
        """Nothing more is given: what is left becomes a last packet."""
        if self._given:
            self._hold(None)
        if rest := self._held % PACKET:
            self._waiting.append(np.zeros(PACKET - rest, np.float32))
            self._held += PACKET - rest

    def _hold(self, frame: av.AudioFrame | None) -> None:
        for part in self._resampler.resample(frame):
            samples = part.to_ndarray().reshape(-1)
            left_out = min(self._skip, len(samples))
            self._skip -= left_out
            if left_out < len(samples):
                self._waiting.append(samples[left_out:])
                self._held += len(samples) - left_out

    def packet(self, gain: np.ndarray | None = None) -> bytes:
        """The next packet; its samples are multiplied by `gain` [960], if one is given."""
        samples = self._take(PACKET)
        if gain is not None:
            samples = samples * gain
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_TICKS, self._coded, Fraction(1, SOUND_TICKS)
        self._coded += PACKET
        return b"".join(bytes(packet) for packet in self._encoder.encode(frame))

    def _take(self, count: int) -> np.ndarray:
        found = []
        while count:
            part = self._waiting.popleft()
            if len(part) > count:
                self._waiting.appendleft(part[count:])
                part = part[:count]
            found.append(part)
            count -= len(part)
            self._held -= len(part)
        return np.concatenate(found)
