"""A still picture, fitted to the stream's size: the reference face, or the first frame of a world."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from conf import disk
from conf.errors import UserError

BEHIND = (128, 128, 128)  # what shows through transparent places
FORMATS = "give a picture such as png, jpeg or webp"
SENT_PIXELS = 1 << 22
"""Of a picture that a gateway sends, at most: it has made it small before."""
HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
"""How the pictures of phones begin, which Pillow reads by another package."""


def load_image(path: str | Path, height: int, width: int) -> Tensor:
    """The picture in `path`, upright, opaque, scaled to cover height x width and cropped around its centre.

    Returns:
        float32 [3, height, width], RGB in [-1, 1].

    Raises:
        UserError: the file is missing, is none, is no picture, or is cut off.
    """
    name = f"source.image={path}"
    disk.readable(name, path, FORMATS)
    _learn_heic(name, path)
    try:
        with Image.open(path) as file:
            picture = _opaque(ImageOps.exif_transpose(file))
    except Image.DecompressionBombError as error:
        raise UserError(name, "the picture is too large to be safe", "scale it down first") from error
    except Exception as error:  # whatever a broken file makes of a library
        reason = getattr(error, "strerror", None) or ("damaged or cut off" if _known(path) else "not a picture")
        raise UserError(name, f"cannot be read ({reason})", FORMATS) from error
    return _fitted(picture, height, width)


def sent_image(name: str, data: bytes, height: int, width: int) -> Tensor:
    """As `load_image`, of a picture that came as bytes: PNG, of SENT_PIXELS at most.

    Args:
        name: where it came from, for complaints.

    Raises:
        UserError: it is another, or damaged.
    """
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as file:
            if file.width * file.height > SENT_PIXELS:
                raise UserError(name, f"sent a picture of more than {SENT_PIXELS} pixels", "scale it down first")
            picture = _opaque(file)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes of a library
        raise UserError(name, "sent a picture that cannot be read", "send a PNG") from error
    return _fitted(picture, height, width)


def _fitted(picture: Image.Image, height: int, width: int) -> Tensor:
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted, np.float32))
    return (pixels.permute(2, 0, 1) / 127.5 - 1.0).contiguous()


def _learn_heic(name: str, path: str | Path) -> None:
    """Have Pillow read a HEIC picture, if this is one.

    Raises:
        UserError: it is, and the package that reads it is not installed.
    """
    try:
        with Path(path).open("rb") as file:
            if not HEIC.match(file.read(12)):
                return
    except OSError:
        return  # said below, where it is opened
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        remedy = "pip install 'everframe[heic]', or save it as jpeg or png"
        raise UserError(name, "is a HEIC picture, which needs pillow-heif", remedy) from error
    register_heif_opener()


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB, 8 bits, with anything transparent laid over mid-grey."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # greyscale beyond 8 bits: its 8 highest ones
        deep = np.asarray(picture, np.float64)
        top = 65535.0 if deep.max() > 255 else 255.0
        picture = Image.fromarray(np.clip(np.round(deep * (255.0 / top)), 0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*BEHIND, 255)), picture).convert("RGB")


def _known(path: str | Path) -> bool:
    """Whether the file starts like a picture."""
    try:
        with Image.open(path):
            return True
    except Exception:
        return False
