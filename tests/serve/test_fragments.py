"""What is muxed plays: every picture and packet comes out of the file with its time."""

import io

import av
import numpy as np
import pytest

from serve.fragments import Fragments
from serve.media import PACKET_SAMPLES, SOUND_RATE, VIDEO_RATE
from tests.serve.realtime_packets import FPS, HEIGHT, WIDTH, both, grey, pictures, sound

FRAME = VIDEO_RATE // FPS


def muxed(packets, loud=True, maker=None):
    """The pieces, the last one included that was not yet whole."""
    maker = maker or Fragments(WIDTH, HEIGHT, FPS, loud)
    pieces = [piece for piece in map(maker.add, packets) if piece]
    rest = maker.flush()
    return maker, pieces + ([rest] if rest else [])


def tracks(data: bytes):
    """(luminance, time) of the pictures, (bytes, time) of the packets of sound, as FFmpeg reads them."""
    seen, heard = [], []
    with av.open(io.BytesIO(data), format="mp4") as file:
        for packet in file.demux():
            at = None if packet.pts is None else float(packet.pts * packet.time_base)
            if packet.stream.type == "video":
                frames = packet.decode()
                seen += [(float(f.to_ndarray()[:HEIGHT].mean()), float(f.time)) for f in frames]
            elif at is not None:
                heard.append((bytes(packet), at))
    return seen, heard


def outermost(data: bytes) -> list[bytes]:
    """The boxes that are in no other."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def test_every_picture_and_packet_comes_out_at_its_time():
    packets = both(2.0)
    _, pieces = muxed(packets)
    seen, heard = tracks(b"".join(pieces))
    assert [at for _, at in seen] == pytest.approx([i / FPS for i in range(2 * FPS)])
    assert [shade for shade, _ in seen] == pytest.approx([grey(i) for i in range(2 * FPS)], abs=3)
    assert [data for data, _ in heard] == [p.data for p in packets if p.kind == "sound"]
    assert [at for _, at in heard] == pytest.approx([j / 50 for j in range(100)])


def test_sound_is_heard_as_it_was_said():
    _, pieces = muxed(both(1.0))
    with av.open(io.BytesIO(b"".join(pieces)), format="mp4") as file:
        samples = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(samples))
    assert len(samples) == SOUND_RATE
    assert spectrum.argmax() * SOUND_RATE / len(samples) == pytest.approx(440, abs=2)


def test_a_recording_of_a_late_viewer_begins_at_once_and_in_step():
    packets = both(3.0, keys=(0, 30))
    joined = [p for p in packets if p.pts / (VIDEO_RATE if p.kind == "video" else SOUND_RATE) >= 1.17]
    maker, pieces = muxed(joined)
    seen, heard = tracks(b"".join(pieces))
    assert maker.origin == 30 * FRAME
    assert seen[0][1] == 0 and seen[0][0] == pytest.approx(grey(30), abs=3)
    assert heard[0] == (sound(150)[75].data, 0)  # 1.5 s, as the picture
    assert len(seen) == 30 and len(heard) == 75


def test_after_a_skip_times_are_the_old_ones():
    packets = both(3.0, keys=(0, 40))
    maker = Fragments(WIDTH, HEIGHT, FPS, True)
    pieces = []
    for packet in packets:
        if packet.kind == "video" and packet.pts == 25 * FRAME:
            maker.skip()
            assert maker.waiting
        pieces.append(maker.add(packet) or b"")
    seen, heard = tracks(b"".join([*pieces, maker.flush()]))
    times = [at for _, at in seen]
    assert times[-20:] == pytest.approx([2 + i / FPS for i in range(20)])
    assert [shade for shade, _ in seen[-20:]] == pytest.approx([grey(40 + i) for i in range(20)], abs=3)
    assert not any(1.25 <= at < 2 for at in times)
    assert max(at for _, at in heard if at < 2) < 1.25
    assert [at for _, at in heard if at >= 2] == pytest.approx([2 + j / 50 for j in range(50)])


def test_sound_that_leaves_before_its_picture_is_kept():
    sounds, shown = sound(5), pictures(2)
    maker, pieces = muxed([*sounds, *shown])
    _, heard = tracks(b"".join(pieces))
    assert [data for data, _ in heard] == [p.data for p in sounds]
    assert maker.origin == 0


def test_fragments_are_short_and_of_one_chunk():
    maker = Fragments(WIDTH, HEIGHT, FPS, False)
    packets = [p._replace(chunk=i // 5) for i, p in enumerate(pictures(33))]  # no multiple of a fragment
    _, (begin, *pieces) = muxed(packets, maker=maker)
    assert begin[4:8] == b"ftyp"
    numbers = []
    boxes = outermost(b"".join(pieces))
    for moof, mdat in zip(boxes[::2], boxes[1::2], strict=True):
        with av.open(io.BytesIO(begin + moof + mdat), format="mp4") as file:
            held = [p.pts // FRAME for p in file.demux(video=0) if p.pts is not None]
        assert len({number // 5 for number in held}) == 1
        assert len(held) * FRAME <= VIDEO_RATE // 10
        numbers += held
    assert numbers == list(range(len(packets)))


def test_pictures_at_half_the_rate_leave_no_holes():
    packets = [p for i, p in enumerate(pictures(40, tuple(range(40)))) if i < 10 or i % 2 == 0]
    _, pieces = muxed(packets, loud=False)
    data = b"".join(pieces)
    with av.open(io.BytesIO(data), format="mp4") as file:
        spans = [(p.pts, p.duration) for p in file.demux(video=0) if p.pts is not None]
    assert [at for at, _ in spans] == [p.pts for p in packets]
    ends = [at + long for at, long in spans[:-1]]
    behind = [at for at, _ in spans[1:]]
    # Only where the rate changes may one stand for less than until the next.
    assert sum(end != at for end, at in zip(ends, behind, strict=True)) <= 1


def test_nothing_begins_without_a_key_frame_and_its_parameters():
    packets = pictures(6)
    maker = Fragments(WIDTH, HEIGHT, FPS, False)
    assert [maker.add(p) for p in packets[1:]] == [None] * 5
    bare = packets[0]._replace(data=b"\0\0\1" + packets[0].data.split(b"\0\0\1")[-1], pts=6 * FRAME)
    assert maker.add(bare) is None and maker.waiting and maker.mime is None


def test_what_has_passed_or_is_of_another_codec_is_left_out():
    packets = pictures(6)
    odd = packets[2]._replace(codec="vp8", pts=100 * FRAME)
    _, pieces = muxed([*packets[:3], packets[1], odd, *packets[3:]], loud=False)
    assert len(tracks(b"".join(pieces))[0]) == 6


def test_another_encoder_brings_its_own_beginning():
    first, second = pictures(5), pictures(5, width=96)
    later = [p._replace(pts=p.pts + 5 * FRAME, chunk=1) for p in second]
    _, pieces = muxed([*first, *later], loud=False)
    begins = [i for i, piece in enumerate(pieces) if b"ftyp" in piece]
    assert len(begins) == 2
    piece = pieces[begins[1]]
    tail = piece[piece.index(b"ftyp") - 4 :]
    assert len(tracks(tail + b"".join(pieces[begins[1] + 1 :]))[0]) == 5


def test_the_type_names_profile_and_level():
    maker, _ = muxed(both(0.5))
    assert maker.mime.startswith('video/mp4; codecs="avc1.42')
    assert maker.mime.endswith(',opus"')
    assert muxed(pictures(3), loud=False)[0].mime.count(",") == 0


def test_sound_goes_on_where_the_picture_stands_still():
    maker = Fragments(WIDTH, HEIGHT, FPS, True)
    maker.add(pictures(1)[0])
    pieces = [maker.add(p) for p in sound(40)]
    assert sum(piece is not None for piece in pieces) == 4
    assert max(p.pts for p in sound(40)) + PACKET_SAMPLES == 40 * PACKET_SAMPLES
