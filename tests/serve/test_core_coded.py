"""What is coded for live viewers: anybody's decoder takes it, it begins where it was asked to, and keeps its rate."""

from __future__ import annotations

import av
import numpy as np
import pytest

from conf.errors import UserError
from stages.sinks import coded
from stages.sinks.coded import (
    LEAST_BITS,
    PACKET,
    PICTURE_TICKS,
    SOUND_TICKS,
    START_BITS,
    VBV_S,
    PictureCoder,
    SoundCoder,
    most_bits,
    planar,
)

FPS, SIZE = 16, 128


def moving(index: int, size: int = SIZE) -> np.ndarray:
    """Stripes that move, with some noise: neither trivial nor hopeless."""
    x = np.arange(size)[None]
    noise = np.random.default_rng(index).integers(0, 48, (size, size, 3))
    stripes = (127 + 80 * np.sin((x + 5 * index) / 9))[..., None] + noise
    return np.clip(stripes, 0, 255).astype(np.uint8)


def code(coder: PictureCoder, count: int, keys=(), first: int = 0, size: int = SIZE) -> list[tuple[bytes, bool]]:
    return [
        coder.encode(planar(moving(i, size)), round(i * PICTURE_TICKS / FPS), i in keys)
        for i in range(first, first + count)
    ]


def decode(codec: str, bodies: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create(codec, "r")
    frames = [frame for body in bodies for frame in decoder.decode(av.Packet(body))]
    return [frame.to_ndarray(format="rgb24") for frame in [*frames, *decoder.decode(None)]]


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_it_decodes_from_every_key_frame_on_and_a_key_is_where_it_was_asked_for(codec):
    coder = PictureCoder(codec, SIZE, SIZE, FPS)
    coder.rate(None)
    made = code(coder, 24, keys=(9,))
    assert [index for index, (_, key) in enumerate(made) if key] == [0, 9]
    for first in (0, 9):
        seen = decode(codec, [body for body, _ in made[first:]])
        assert len(seen) == 24 - first
        for index, picture in enumerate(seen, first):
            assert np.abs(picture.astype(int) - moving(index)).mean() < 24, index
    assert all(body for body, _ in made)


def test_h264_is_annex_b_of_the_constrained_baseline_with_parameters_in_every_key_frame():
    made = code(PictureCoder("h264", SIZE, SIZE, FPS), 6, keys=(3,))
    for index, (body, key) in enumerate(made):
        units = [unit for unit in body.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
        kinds = [unit[0] & 31 for unit in units]
        assert body.startswith((b"\0\0\0\1", b"\0\0\1"))
        assert ({7, 8, 5} <= set(kinds)) == key == (index in (0, 3))
        assert 5 not in kinds or key
        if key:
            sps = units[kinds.index(7)]
            assert sps[1] == 66 and sps[2] & 0x40  # profile_idc, constraint_set1_flag (H.264, 7.4.2.1.1)


def test_colours_are_those_of_bt_709():
    """A decoder that knows nothing of the stream's own words still shows nearly the right ones."""
    flat = np.zeros((SIZE, SIZE, 3), np.uint8)
    flat[:, : SIZE // 2], flat[:, SIZE // 2 :] = (200, 40, 60), (30, 160, 220)
    luma = planar(flat).to_ndarray()[:SIZE, :SIZE]
    for side, rgb in ((luma[:, 8], (200, 40, 60)), (luma[:, -8], (30, 160, 220))):
        expected = 16 + 219 / 255 * np.dot((0.2126, 0.7152, 0.0722), rgb)
        assert abs(side.mean() - expected) < 2


@pytest.mark.parametrize("bits", [160_000, 280_000])
def test_the_rate_is_kept_and_no_picture_takes_more_than_its_share_in_advance(bits):
    coder = PictureCoder("h264", SIZE, SIZE, FPS)
    coder.rate(bits)
    made = code(coder, 6 * FPS, keys=(50,))
    sizes = np.array([8 * len(body) for body, _ in made])
    # The encoder was opened for this rate at most while nothing else was known; a second of settling.
    settled = sizes[FPS:]
    assert settled.sum() / (len(settled) / FPS) < 1.15 * bits
    vbv = VBV_S * max(bits, coder._most)
    assert sizes.max() < 1.25 * vbv


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_a_new_rate_holds_at_once_and_leaves_a_stream_that_decodes(codec):
    coder = PictureCoder(codec, SIZE, SIZE, FPS)
    coder.rate(None)
    made = code(coder, 2 * FPS)
    coder.rate(LEAST_BITS)
    made += code(coder, 3 * FPS, first=2 * FPS)
    assert len(decode(codec, [body for body, _ in made])) == 5 * FPS
    before = 8 * sum(len(body) for body, _ in made[FPS : 2 * FPS])
    after = 8 * sum(len(body) for body, _ in made[-2 * FPS :]) / 2
    assert after < 0.65 * before and after < 1.15 * LEAST_BITS
    again = [index for index, (_, key) in enumerate(made) if key]
    assert again == ([0] if codec == "h264" else [0, 2 * FPS])  # a VP8 encoder begins anew


def test_small_changes_are_not_followed_and_rates_have_bounds():
    large = 384
    coder, most = PictureCoder("h264", large, large, FPS), most_bits(large, large, FPS)
    assert coder._bits == START_BITS < most
    for asked, bits in ((None, most), (1, LEAST_BITS), (10**9, most)):
        coder.rate(asked)
        assert coder._bits == bits
    code(coder, 1, size=large)
    coder.rate(round(0.97 * most))
    assert coder._bits == most


def test_a_rate_set_before_the_first_picture_can_rise_later():
    """Thin at first, then all it is worth: an encoder opened at the thin rate still follows."""
    coder = PictureCoder("h264", SIZE, SIZE, FPS)
    coder.rate(LEAST_BITS)
    made = code(coder, 2 * FPS)
    coder.rate(None)
    made += code(coder, 3 * FPS, first=2 * FPS)
    thin = sum(len(body) for body, _ in made[FPS : 2 * FPS])
    rich = sum(len(body) for body, _ in made[-FPS:])
    assert rich > 1.6 * thin


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (480, 832)])
def test_sizes_that_models_have(size):
    height, width = size
    frame = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    for codec in ("h264", "vp8"):
        body, key = PictureCoder(codec, height, width, 30000 / 1001).encode(planar(frame), 0, False)
        assert key and decode(codec, [body])[0].shape == (height, width, 3)


def test_an_encoder_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setitem(coded.ENCODERS, "h264", (("no such encoder", {}),))
    with pytest.raises(UserError, match="no encoder could be opened"):
        code(PictureCoder("h264", SIZE, SIZE, FPS), 1)


def test_a_card_without_an_encoder_falls_back(monkeypatch):
    monkeypatch.setitem(coded.ENCODERS, "h264", (("h264_nvenc", {"preset": "none of its"}), ("libx264", coded.X264)))
    assert code(PictureCoder("h264", SIZE, SIZE, FPS, card=True), 1)[0][1]


def heard(bodies: list[bytes]) -> np.ndarray:
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = SOUND_TICKS, "mono"
    found = [frame.to_ndarray().reshape(-1) for body in bodies for frame in decoder.decode(av.Packet(body))]
    return np.concatenate(found) / np.float32(32768)


@pytest.mark.parametrize("pieces", [[16_000], [100, 12_000, 1, 3899], [12_000] * 4])
def test_sound_comes_out_in_packets_of_twenty_milliseconds_however_it_came(pieces):
    coder, bodies, given = SoundCoder(), [], 0
    for count in pieces:
        at = np.arange(given, given + count) / 16_000
        coder.give((0.5 * np.sin(2 * np.pi * 1000 * at)).astype(np.float32))
        given += count
        while coder.ready:
            assert coder.next == len(bodies) * PACKET
            bodies.append(coder.packet())
    # A resampler keeps less than a millisecond to itself.
    assert given * 3 - 960 - 48 <= len(bodies) * PACKET <= given * 3
    sound = heard(bodies)[4800:-960]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert abs(np.fft.rfftfreq(len(sound), 1 / SOUND_TICKS)[spectrum.argmax()] - 1000) < 5


def test_gain_is_of_the_packet():
    coder = SoundCoder()
    coder.give(np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32))
    loud = [coder.packet() for _ in range(10)]
    quiet = [coder.packet(np.zeros(PACKET, np.float32)) for _ in range(10)]
    sound = np.abs(heard(loud + quiet))
    assert sound[2 * PACKET : 9 * PACKET].max() > 0.2 and sound[-5 * PACKET :].max() < 0.01
