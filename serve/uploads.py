"""Pictures that callers send: decoded within limits, made anew, kept in memory for ten minutes.

What is decoded later, by a stage, is always a PNG of ours: never a caller's file, never one by a name or an address.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from serve.limits import UPLOAD_BYTES, site
from serve.problems import Problem

FORMATS = ("PNG", "JPEG", "WEBP")
"""Decoders that callers may reach."""
PIXELS, SIDE = 24_000_000, 1024
"""Of a picture that is sent, and the longer side of what is kept of it."""
KEPT_S = 600.0
MOST, EACH = 64, 8
"""Pictures that are kept, in all and of one caller; each takes SIDE * SIDE * 3 bytes at most, or a little more."""
DECODERS = 2
"""Pictures that are decoded at a time."""
BEHIND = (128, 128, 128)
"""What shows through transparent places, as where a stage reads a picture."""
ID_BYTES, ID_LETTERS = 16, 22
"""Of an upload's id; no base64 has so many letters."""
WANTED = "send png, jpeg or webp"


@dataclass(frozen=True)
class Upload:
    """A picture that is kept.

    Attributes:
        id: that nobody guesses.
        data: as PNG.
        width, height: of the file, in pixels.
        expires_at: seconds since 1970.
    """

    id: str
    data: bytes
    width: int
    height: int
    expires_at: float
    caller: str

    @property
    def told(self) -> dict[str, Any]:
        """As the answer of POST /v1/uploads."""
        return {"id": self.id, "width": self.width, "height": self.height, "expires_at": round(self.expires_at, 3)}


def decoded(data: bytes) -> Image.Image:
    """A picture, upright, opaque, RGB, at most SIDE pixels wide and high, with nothing beside its pixels.

    Raises:
        Problem: `unsupported_media` (none of FORMATS), `too_large` (over PIXELS), `unprocessable` (damaged).
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > PIXELS:
                raise Problem("too_large", f"the picture has more than {PIXELS // 10**6} megapixels; scale it down")
            file.draft("RGB", (SIDE, SIDE))
            picture = _opaque(ImageOps.exif_transpose(file))
    except Image.DecompressionBombError:
        raise Problem("too_large", f"the picture has more than {PIXELS // 10**6} megapixels; scale it down") from None
    except Image.UnidentifiedImageError:
        raise Problem("unsupported_media", f"this is no picture of a kind that is read; {WANTED}") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError, KeyError, IndexError, MemoryError):
        raise Problem("unprocessable", f"the picture is damaged or cut off; {WANTED}") from None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.info = {}
    return picture


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits: the 8 highest ones
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*BEHIND, 255)), picture).convert("RGB")


def _made(data: bytes) -> tuple[bytes, int, int]:
    """A picture as PNG, its width and height; errors as of `decoded`."""
    picture, file = decoded(data), BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue(), *picture.size


class Uploads:
    """The pictures of a server.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._kept: dict[str, Upload] = {}
        self._coming: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(DECODERS, "uploads")

    def __len__(self) -> int:
        return len(self._kept)

    async def add(self, data: bytes, caller: str) -> Upload:
        """Keep a picture for KEPT_S.

        Raises:
            Problem: those of `decoded`; `too_many`, the caller has EACH; `full`, all have MOST.
        """
        key = site(caller)
        self.sweep()
        mine = [upload for upload in self._kept.values() if upload.caller == key]
        if len(mine) + self._coming[key] >= EACH:
            detail = f"{EACH} pictures of one address are kept; wait until one is forgotten"
            raise Problem("too_many", detail, self._wait(mine))
        if len(self) + self._coming.total() >= MOST:
            raise Problem("full", "no more pictures are kept; wait a little", self._wait(list(self._kept.values())))
        self._coming[key] += 1
        try:
            made, width, height = await self._in_thread(_made, data)
        finally:
            self._coming[key] -= 1
            self._coming += Counter()  # forgets those who are at zero
        upload = Upload(secrets.token_urlsafe(ID_BYTES), made, width, height, self._clock() + KEPT_S, key)
        self._kept[upload.id] = upload
        asyncio.get_running_loop().call_later(KEPT_S + 1, self.sweep)
        return upload

    async def picture(self, image: str) -> bytes:
        """PNG for a session that is opened with `image`: an upload's id, or a picture in base64 (RFC 4648).

        Raises:
            Problem: `not_found`, there is no such upload any more; `unprocessable`, it is neither; those of `decoded`.
        """
        self.sweep()
        if upload := self._kept.get(image):
            return upload.data
        text = image.partition("base64,")[2] if image.startswith("data:image/") else image
        if len(text) > UPLOAD_BYTES * 4 // 3 + 4:
            raise Problem("too_large", f"image: the picture has more than {UPLOAD_BYTES} bytes; send a smaller one")
        if len(text) == ID_LETTERS:
            raise Problem("not_found", "there is no such picture, or not any more; send it to POST /v1/uploads again")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            detail = "image is neither the id of an upload nor base64; send it to POST /v1/uploads first"
            raise Problem("unprocessable", detail) from None
        made, _, _ = await self._in_thread(_made, data)
        return made

    def sweep(self) -> None:
        """Forget what has been kept long enough."""
        now = self._clock()
        for upload in [upload for upload in self._kept.values() if upload.expires_at <= now]:
            del self._kept[upload.id]

    def close(self) -> None:
        """Forget all; waits for what is being decoded."""
        self._kept.clear()
        self._threads.shutdown(cancel_futures=True)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _wait(self, uploads: list[Upload]) -> float:
        """Seconds until the first of them is forgotten."""
        return min((upload.expires_at for upload in uploads), default=self._clock() + 1) - self._clock()
