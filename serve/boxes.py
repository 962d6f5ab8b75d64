"""The boxes of a fragmented mp4: H.264 and Opus as they were encoded, nothing decoded and no file needed.

Written by hand: FFmpeg's muxer wants every packet's successor before it lets one go, and holds on to the first times it
saw, so a viewer that joins late or was skipped ahead would wait and then be out of step. Names and layouts are those of
ISO/IEC 14496-12 (file format), 14496-15 (H.264 in it) and the Opus encapsulation that RFC 6716's makers publish.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from serve.media import SOUND_RATE, VIDEO_RATE

VIDEO, SOUND = 1, 2
"""Numbers of the tracks."""
CHANNELS = 2
"""Of the sound track. Every Opus decoder makes two of one, and each packet says which it is (RFC 6716, 3.1)."""
UNITY = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
ALONE, DEPENDENT = 0x02000000, 0x01010000
"""Flags of a sample: nothing else is needed to decode it; something is, and it is no place to begin."""
BASE_IS_MOOF = 0x020000
EACH_HAS = 0x000001 | 0x000100 | 0x000200 | 0x000400
"""Of a run: where its data begins; then for every sample its duration, size and flags."""
WITH_CHROMA = frozenset({100, 110, 122, 144})
"""H.264 profiles whose decoder configuration names the form of the picture."""


class Sample(NamedTuple):
    """One picture, or one packet of sound.

    Attributes:
        data: NAL units, each behind its length in 4 bytes; or an Opus packet.
        time, duration: in ticks of its track.
        key: whether a decoder can begin with it.
    """

    data: bytes
    time: int
    duration: int
    key: bool


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box: its size, its kind, and what is in it."""
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A box with a version and 24 bits of flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def init(width: int, height: int, sps: bytes, pps: bytes, sound: bool) -> bytes:
    """What comes before all fragments.

    Args:
        width, height: in pixels.
        sps, pps: parameter sets of the pictures, NAL units without start codes; 4:2:0, 8 bits.
        sound: whether there is a sound track.
    """
    tracks = [_track(VIDEO, VIDEO_RATE, b"vide", _avc1(width, height, sps, pps), width, height)]
    extends = [_extends(VIDEO, DEPENDENT)]
    if sound:
        tracks.append(_track(SOUND, SOUND_RATE, b"soun", _opus(), 0, 0))
        extends.append(_extends(SOUND, ALONE))
    times = struct.pack(">IIII", 0, 0, 1000, 0)
    head = full(b"mvhd", 0, 0, times, struct.pack(">IH10x", 1 << 16, 1 << 8), UNITY, bytes(24), struct.pack(">I", 3))
    kinds = box(b"ftyp", b"iso6", struct.pack(">I", 0), b"iso6", b"mp41")
    return kinds + box(b"moov", head, *tracks, box(b"mvex", *extends))


def fragment(number: int, video: Sequence[Sample], sound: Sequence[Sample]) -> bytes:
    """Some pictures and the sound beside them.

    Args:
        number: of the fragment, from 1.
        video, sound: in order; at least one of them is not empty.
    """
    tracks = [(track, run) for track, run in ((VIDEO, video), (SOUND, sound)) if run]
    size = len(_moof(number, tracks, 0))
    data = [sample.data for _, run in tracks for sample in run]
    return _moof(number, tracks, size + 8) + box(b"mdat", *data)


def _moof(number: int, tracks: Sequence[tuple[int, Sequence[Sample]]], at: int) -> bytes:
    """The fragment's table; `at` is where its data begins, from the table's own beginning."""
    found = []
    for track, run in tracks:
        samples = [
            struct.pack(">III", s.duration, len(s.data), ALONE if s.key or track == SOUND else DEPENDENT) for s in run
        ]
        found.append(
            box(
                b"traf",
                full(b"tfhd", 0, BASE_IS_MOOF, struct.pack(">I", track)),
                full(b"tfdt", 1, 0, struct.pack(">Q", run[0].time)),
                full(b"trun", 0, EACH_HAS, struct.pack(">Ii", len(run), at), *samples),
            )
        )
        at += sum(len(s.data) for s in run)
    return box(b"moof", full(b"mfhd", 0, 0, struct.pack(">I", number)), *found)


def _track(track: int, rate: int, handler: bytes, entry: bytes, width: int, height: int) -> bytes:
    loud = handler == b"soun"
    head = struct.pack(">IIIII8xhhHxx", 0, 0, track, 0, 0, 0, 0, (1 << 8) if loud else 0)
    tkhd = full(b"tkhd", 0, 3, head, UNITY, struct.pack(">II", width << 16, height << 16))
    mdhd = full(b"mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, rate, 0, _language("und"), 0))
    hdlr = full(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, handler), b"everframe\0")
    kind = full(b"smhd", 0, 0, bytes(4)) if loud else full(b"vmhd", 0, 1, bytes(8))
    here = box(b"dinf", full(b"dref", 0, 0, struct.pack(">I", 1), full(b"url ", 0, 1)))
    tables = [full(name, 0, 0, bytes(4)) for name in (b"stts", b"stsc")]
    tables += [full(b"stsz", 0, 0, bytes(8)), full(b"stco", 0, 0, bytes(4))]
    stbl = box(b"stbl", full(b"stsd", 0, 0, struct.pack(">I", 1), entry), *tables)
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, box(b"minf", kind, here, stbl)))


def _language(name: str) -> int:
    """Three letters of 5 bits each."""
    first, second, third = (ord(letter) - 0x60 for letter in name)
    return first << 10 | second << 5 | third


def _extends(track: int, flags: int) -> bytes:
    return full(b"trex", 0, 0, struct.pack(">IIIII", track, 1, 0, 0, flags))


def _avc1(width: int, height: int, sps: bytes, pps: bytes) -> bytes:
    """The pictures' form, with their decoder's configuration (14496-15, 5.3.3)."""
    sets = struct.pack(">BH", 0xE1, len(sps)) + sps + struct.pack(">BH", 1, len(pps)) + pps
    chroma = bytes((0xFC | 1, 0xF8, 0xF8, 0)) if sps[1] in WITH_CHROMA else b""
    avcc = box(b"avcC", bytes((1, sps[1], sps[2], sps[3], 0xFC | 3)), sets, chroma)
    form = struct.pack(">6xH16xHHIIIH32xHh", 1, width, height, 72 << 16, 72 << 16, 0, 1, 0x18, -1)
    return box(b"avc1", form, avcc)


def _opus() -> bytes:
    """The sound's form. Nothing is to be left out at its beginning (PreSkip 0): a viewer joins in the middle."""
    dops = box(b"dOps", struct.pack(">BBHIhB", 0, CHANNELS, 0, SOUND_RATE, 0, 0))
    return box(b"Opus", struct.pack(">6xH8xHH4xI", 1, CHANNELS, 16, SOUND_RATE << 16), dops)
