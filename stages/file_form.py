"""Which form of weights a file has, told by its bytes and never by its name; and what people give that is no weights.

Whatever is refused is refused by what it is: what a library says of it would be about its own inside.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from conf import disk
from conf.errors import UserError

SAFETENSORS, TORCH = "safetensors", "torch"

AGAIN, NAME = "download it again", "name the file with the weights"
CONVERT = "save its tensors alone as .safetensors"
ORIGINAL = "give the weights it was made from; model.fp8 makes 8-bit products of them"

SIGNS = (
    (rb"version https://git-lfs", "is a git-lfs pointer, not the weights it stands for", "run git lfs pull there"),
    (rb"GGUF", "is GGUF, quantised for llama.cpp", ORIGINAL),
    (rb"(?i)\s*<(!doctype|!--|html|head|body|\?xml)", "is a web page, not weights: the download went wrong", AGAIN),
    (rb"\s*[{\[]\s*[\"{}\[\]]", "is JSON, not weights", "if it is the answer of a failed download, download it again"),
    (rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", "has torch's format of before 1.6", "convert it to .safetensors"),
    (rb"\x80[\x02-\x05]", "is a pickle of Python objects, which may hold code and is never run", CONVERT),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "is a compressed archive", "unpack it"),
    (rb"\x89HDF|\x93NUMPY", "holds arrays of another library", "convert it to .safetensors"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM", "is a picture, not weights", NAME),
    (rb"RIFF|ID3|OggS|fLaC|....ftyp", "is sound or video, not weights", NAME),
    (rb"[\t\n\r\x20-\x7e]{16}", "is text, not weights", NAME),
)
"""How files that are no weights begin, what they are, and what to do."""

QUANTISED = (
    ("NVFP4, 4-bit", r".*\.weight_scale_2"),
    ("by ComfyUI", r".*\.comfy_quant"),
    ("by bitsandbytes, 4-bit", r".*\.(nested_)?(absmax|quant_map)|.*\.quant_state\..+"),
    ("by bitsandbytes, 8-bit", r".*\.SCB"),
    ("by GPTQ or AWQ", r".*\.(qweight|qzeros|g_idx)"),
    ("by SVDQuant", r".*\.(wscales|smooth_factor)"),
    ("by torchao", r".*[._:]weight[._:](qdata|zero_point)|.*_weight_(qdata|scale)"),
    ("by optimum-quanto", r".*\.weight\._(data|scale)"),
    ("scaled fp8", r"(.*\.)?scaled_fp8|.*\.(scale_(weight|input)|weight_scale(_inv)?|input_scale)"),
)
"""How weights were quantised, and a key that is there only then; the first that is found counts. fp8 without scales is
weights like others."""

HEAD = 64
"""Bytes that tell the form."""
LONGEST_HEADER = 100_000_000
"""Of a safetensors file, in bytes: its library takes no longer one."""


def form(name: str, file: Path) -> str:
    """SAFETENSORS or TORCH, of a file that is one of these and whole, as far as its beginning and its end tell.

    Args:
        name: setting and path, for messages.
        file: the file itself.

    Raises:
        UserError: it cannot be read, is cut short, or is something else.
    """
    disk.readable(name, file, "name a file of weights")
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise UserError(name, f"{file.name} cannot be read ({error.strerror})", "check who may read it") from error
    held = file.stat().st_size
    if not held:
        raise UserError(name, f"{file.name} is empty", AGAIN)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= LONGEST_HEADER:
        whole(name, file, 8 + header, "at least ")
        return SAFETENSORS
    if head.startswith(b"PK"):
        _archive(name, file)
        return TORCH
    for pattern, what, remedy in SIGNS:
        if re.match(pattern, head):
            raise UserError(name, f"{file.name} {what}", remedy)
    raise UserError(name, f"{file.name} is no file of weights: it begins with {head[:8].hex(' ')}", AGAIN)


def whole(name: str, file: Path, expected: int, least: str = "") -> None:
    """Refuse a file that is shorter than its header says.

    Raises:
        UserError: it is.
    """
    held = file.stat().st_size
    if held < expected:
        raise UserError(name, f"{file.name} is cut short: it holds {held} of {least}{expected} bytes", AGAIN)


def _archive(name: str, file: Path) -> None:
    """Refuse a zip archive that torch did not write, or not to its end."""
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [Path(entry) for entry in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        held = file.stat().st_size
        raise UserError(name, f"{file.name} is cut short or damaged: its {held} bytes have no end", AGAIN) from error
    names = {entry.name for entry in inside}
    if "constants.pkl" in names:
        raise UserError(name, f"{file.name} is a TorchScript program, not weights", CONVERT)
    if "data.pkl" not in names:
        listed = ", ".join(str(entry) for entry in inside[:3])
        raise UserError(name, f"{file.name} is a zip archive of other things ({listed})", "unpack it")


def quantised(dtypes: Mapping[str, torch.dtype]) -> str | None:
    """How a file's weights were quantised, and the key that tells; None: they were not.

    Args:
        dtypes: of its tensors, by key.
    """
    for how, pattern in QUANTISED:
        if key := next((key for key in dtypes if re.fullmatch(pattern, key)), None):
            return f"{how}: {key}"
    integers = (k for k, t in dtypes.items() if t in (torch.int8, torch.uint8) and k.endswith("weight"))
    key = next(integers, None)
    return key and f"to 8-bit integers: {key}"
