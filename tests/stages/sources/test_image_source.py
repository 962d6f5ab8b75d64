"""Pictures are fitted, upright and opaque, and what is no picture is one line."""

import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conf.errors import UserError
from stages.sources.image import load_image, sent_image


def halves(size, left, right):
    """A picture whose left and right halves have one colour each."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = left, right
    return Image.fromarray(pixels)


def test_shape_range_and_orientation_of_the_axes(tmp_path):
    halves((64, 32), (255, 0, 0), (0, 0, 255)).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", 32, 64)
    assert image.shape == (3, 32, 64) and image.dtype == torch.float32 and image.is_contiguous()
    assert image[:, 5, 5].tolist() == [1, -1, -1] and image[:, 5, 60].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("size", [(640, 100), (100, 640), (10, 10), (33, 47)])
def test_covers_and_crops_around_the_centre(tmp_path, size):
    halves(size, (255, 255, 255), (0, 0, 0)).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", 32, 32)
    assert image.shape == (3, 32, 32) and image.abs().max() <= 1
    assert image[:, :, :12].min() > 0.9 and image[:, :, 20:].max() < -0.9


def test_a_circle_stays_a_circle(tmp_path):
    y, x = np.mgrid[:120, :300]
    disc = np.where((x - 150) ** 2 + (y - 60) ** 2 < 40**2, 255, 0).astype(np.uint8)
    Image.fromarray(disc).save(tmp_path / "a.png")
    bright = load_image(tmp_path / "a.png", 60, 60)[0] > 0
    assert bright.any(0).sum() == pytest.approx(40, abs=2) and bright.any(1).sum() == pytest.approx(40, abs=2)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: the left half comes to the top
    halves((64, 64), (255, 255, 255), (0, 0, 0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg", 64, 64)
    assert image[:, :28].min() > 0.8 and image[:, 36:].max() < -0.8


def test_transparency_lies_over_grey(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 8, 8).abs().max() < 0.01
    Image.new("P", (8, 8), 0).save(tmp_path / "b.gif", transparency=0)
    assert load_image(tmp_path / "b.gif", 8, 8).abs().max() < 0.01


@pytest.mark.parametrize(
    "mode, colour, value", [("L", 255, 1), ("1", 1, 1), ("CMYK", (0, 0, 0, 0), 1), ("LA", (0, 255), -1)]
)
def test_other_modes(tmp_path, mode, colour, value):
    Image.new(mode, (8, 8), colour).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    image = load_image(next(tmp_path.iterdir()), 8, 8)
    assert torch.equal(image, torch.full((3, 8, 8), float(value)))


def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 8, 8).min() == 1
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 8, 8).abs().max() < 0.01


def test_what_a_user_can_get_wrong(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    bad = {
        "missing.png": (None, "there is no such file"),
        "empty.png": (b"", "not a picture"),
        "text.png": (b"hello", "not a picture"),
        "cut.png": (data[: len(data) // 2], "damaged or cut off"),
        "folder": ("folder", "is no file but a folder"),
    }
    for name, (content, rule) in bad.items():
        if content == "folder":
            (tmp_path / name).mkdir()
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rule) as error:
            load_image(tmp_path / name, 32, 32)
        assert str(error.value).startswith(f"source.image={tmp_path / name}: ") and "\n" not in str(error.value)


def test_a_picture_beyond_all_measure_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="too large"):
        load_image(tmp_path / "a.png", 32, 32)


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)


def test_a_phones_picture_names_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "face.jpg").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"is a HEIC picture, .*; pip install 'everframe\[heic\]'"):
        load_image(tmp_path / "face.jpg", 32, 32)


def test_a_phones_picture_is_opened_with_it(tmp_path, monkeypatch):
    """The package registers itself with Pillow, which then opens the file like any other."""
    opened, red = Image.open, Image.new("RGB", (8, 8), (255, 0, 0))

    def learn():
        monkeypatch.setattr(Image, "open", lambda path: red if str(path).endswith("heic") else opened(path))

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=learn))
    (tmp_path / "face.heic").write_bytes(HEIC)
    assert load_image(tmp_path / "face.heic", 8, 8)[:, 4, 4].tolist() == [1, -1, -1]


def sent(picture, form="PNG"):
    file = BytesIO()
    picture.save(file, form)
    return file.getvalue()


def test_one_that_is_sent_is_as_one_in_a_file(tmp_path):
    picture = halves((60, 40), (200, 10, 0), (0, 30, 255))
    picture.save(tmp_path / "a.png")
    assert torch.equal(sent_image("x", sent(picture), 32, 64), load_image(tmp_path / "a.png", 32, 64))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (sent(halves((8, 8), (0, 0, 0), (0, 0, 0)), "JPEG"), "cannot be read"),
        (sent(halves((64, 64), (9, 0, 0), (0, 7, 0)))[:60], "cannot be read"),
        (b"none", "cannot be read"),
        (sent(Image.new("1", (4096, 1025))), "more than 4194304 pixels"),
    ],
    ids=["jpeg", "cut", "none", "large"],
)
def test_what_is_sent_and_is_none_or_too_large_is_one_line(data, said):
    with pytest.raises(UserError, match=said):
        sent_image("source.session", data, 32, 32)


def test_whatever_a_broken_picture_makes_of_its_library_is_a_line(tmp_path, monkeypatch):
    """Decoders of some formats raise errors of their own."""
    (path := tmp_path / "a.avif").write_bytes(b"avif")

    def broken(*args, **kwargs):
        raise RuntimeError("Failed to decode image")

    monkeypatch.setattr(Image, "open", broken)
    for read in (lambda: load_image(path, 8, 8), lambda: sent_image("source.session", b"avif", 8, 8)):
        with pytest.raises(UserError, match="cannot be read"):
            read()
