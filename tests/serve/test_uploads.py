"""Pictures that callers send: what is kept of them, for how long, and what is refused."""

import asyncio
import base64
import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serve.problems import Problem
from serve.uploads import EACH, KEPT_S, MOST, SIDE, Uploads, decoded


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def uploads(clock):
    made = Uploads(clock)
    yield made
    made.close()


def data(form="PNG", size=(64, 48), mode="RGB", **options) -> bytes:
    file = BytesIO()
    Image.new(mode, size, options.pop("color", 0)).save(file, form, **options)
    return file.getvalue()


def refused(call, *arguments) -> Problem:
    with pytest.raises(Problem) as caught:
        asyncio.run(call(*arguments)) if asyncio.iscoroutinefunction(call) else call(*arguments)
    return caught.value


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + kind + body + struct.pack("!I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_what_is_kept_is_a_picture_of_ours(uploads, form):
    noted = Image.Exif()
    noted[0x010E] = "where I live"
    upload = asyncio.run(uploads.add(data(form, (2000, 500), color=(9, 99, 199), exif=noted), "a"))
    assert (upload.width, upload.height) == (SIDE, SIDE // 4)
    assert b"where I live" not in upload.data
    with Image.open(BytesIO(upload.data)) as kept:
        assert (kept.format, kept.mode, kept.size) == ("PNG", "RGB", (SIDE, SIDE // 4))
        assert np.abs(np.asarray(kept, int) - (9, 99, 199)).max() <= 4


def test_small_ones_keep_their_size_and_turned_ones_are_upright():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decoded(data("JPEG", (64, 48), exif=turned)).size == (48, 64)
    assert decoded(data("PNG", (1, 1))).size == (1, 1)


@pytest.mark.parametrize(
    "mode, color, expected",
    [
        ("RGBA", (255, 0, 0, 0), (128, 128, 128)), ("RGBA", (255, 0, 0, 255), (255, 0, 0)), ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)), ("LA", (10, 0), (128, 128, 128)), ("I;16", 0x4D12, (0x4D,) * 3), ("P", 0, (0, 0, 0)),
    ],
)  # fmt: skip
def test_every_kind_of_pixel_becomes_rgb(mode, color, expected):
    assert decoded(data("PNG", (4, 4), mode, color=color)).getpixel((1, 2)) == expected


@pytest.mark.parametrize(
    "sent, type",
    [
        (b"", "unsupported_media"), (b"GIF89a" + b"x" * 50, "unsupported_media"), (data("BMP"), "unsupported_media"),
        (data("GIF", mode="P"), "unsupported_media"), (data("TIFF"), "unsupported_media"),
        (data()[:60], "unprocessable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_media"), (png(6000, 6000), "too_large"),
        (png(60000, 60000), "too_large"), (png(1 << 30, 1 << 30), "too_large"), (png(0, 5), "unsupported_media"),
        (png(900, 900, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * (80 << 20)))), "unprocessable"),
        (png(900, 900, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * (80 << 20)))), "unprocessable"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_or_too_much_of_one_is_refused(sent, type):
    assert refused(decoded, sent).type in (type, "unsupported_media" if type == "unprocessable" else type)


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_refused_and_nothing_else(uploads):
    """A seeded thousand of cut and flipped files end as a picture or as a problem."""
    chance, ends = random.Random(3), set()
    whole = [data(form, (40, 30), color=(1, 200, 3)) for form in ("PNG", "JPEG", "WEBP")]
    for _ in range(1000):
        made = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 6)):
            made[chance.randrange(len(made))] = chance.randrange(256)
        made = made[: chance.randrange(len(made)) if chance.random() < 0.3 else None]
        try:
            ends.add(decoded(bytes(made)).mode)
        except Problem as problem:
            ends.add(problem.type)
    assert (
        {"RGB", "unprocessable", "unsupported_media"}
        <= ends
        <= {"RGB", "unprocessable", "unsupported_media", "too_large"}
    )


def test_ten_minutes_and_no_longer(uploads, clock):
    async def kept():
        upload = await uploads.add(data(), "a")
        assert upload.told["expires_at"] == clock.now + KEPT_S
        clock.now += KEPT_S - 1
        assert await uploads.picture(upload.id) == upload.data
        clock.now += 2
        with pytest.raises(Problem) as caught:
            await uploads.picture(upload.id)
        assert caught.value.type == "not_found"

    asyncio.run(kept())
    assert len(uploads) == 0


def test_so_many_of_each_and_in_all(uploads, clock):
    async def filled():
        for _ in range(EACH):
            await uploads.add(data(), "2001:db8::1")
        with pytest.raises(Problem) as caught:
            await uploads.add(data(), "2001:db8::2")  # of the same site
        assert caught.value.type == "too_many" and caught.value.retry_after_s == KEPT_S
        for number in range(MOST - EACH):
            await uploads.add(data(), f"10.0.{number}.1")
        with pytest.raises(Problem) as caught:
            await uploads.add(data(), "10.1.1.1")
        assert caught.value.type == "full"
        clock.now += KEPT_S
        await uploads.add(data(), "10.1.1.1")

    asyncio.run(filled())


def test_those_that_are_being_read_count_too(uploads):
    async def together():
        return await asyncio.gather(*(uploads.add(data(), "a") for _ in range(EACH + 3)), return_exceptions=True)

    found = asyncio.run(together())
    assert sum(isinstance(one, Problem) for one in found) == 3

    async def damaged():
        for _ in range(EACH + 3):
            with pytest.raises(Problem) as caught:
                await uploads.add(b"nothing", "b")
            assert caught.value.type == "unsupported_media"
        await uploads.add(data(), "b")

    asyncio.run(damaged())


def test_a_picture_in_base64(uploads):
    text = base64.b64encode(data("JPEG", color=(0, 0, 200))).decode()
    for image in (text, f"data:image/jpeg;base64,{text}"):
        with Image.open(BytesIO(asyncio.run(uploads.picture(image)))) as picture:
            assert picture.size == (64, 48)
    assert len(uploads) == 0


def test_an_image_is_never_a_path_or_an_address(uploads):
    for image, type in {
        "": "unsupported_media", "../../etc/passwd": "unprocessable", "aGVsbG8=": "unsupported_media",
        "/etc/passwd" * 4: "unsupported_media",
        "é" * 40: "unprocessable", "x" * 22: "not_found", "A" * 33: "unprocessable", "A" * (12 << 20): "too_large",
        "file:///" + "a" * 40: "unprocessable", "http://example.org/" + "a" * 40: "unprocessable",
        base64.b64encode(b"x" * 99).decode(): "unsupported_media",
    }.items():  # fmt: skip
        assert refused(uploads.picture, image).type == type, image[:40]
