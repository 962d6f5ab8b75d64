"""Final latents to a safetensors file that can be loaded after every write.

A safetensors file is: the header's length (8 bytes, little-endian), a JSON header, the tensors' bytes. The header may
end in spaces, so room is kept for entries to come: a write appends the bytes and then puts one entry over the
header's closing brace. Only when the room is used up is the file rewritten, with twice the room.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from conf import disk
from stages.sinks.latents_hash import raw

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
RESERVE = 1 << 16  # bytes of header: room for about 600 chunks
LARGEST_HEADER = 100_000_000  # what safetensors reads


class LatentsSink:
    """Chunks as they come, under the keys `chunk.000000`, `chunk.000001`, ...

    Args:
        path: the file; it is replaced, and its folder made.
        reserve: bytes of header to begin with.
        first: number of the first chunk to come.
        digest: sha256 of the chunks before it. If the file begins with just these, they stay, what lies behind them is
            cut off, and the file goes on; else it is replaced by one that begins with chunk `first`.

    Raises:
        UserError: the file cannot be made.
    """

    def __init__(self, path: str | Path, reserve: int = RESERVE, first: int = 0, digest: str | None = None):
        self.path = Path(path)
        self.chunks = 0  # in the file
        self._next = first
        self._file: BinaryIO | None = None
        self._reserve = max(16, (reserve + 7) // 8 * 8)
        self._header = 1  # bytes of JSON before its closing brace
        self._data = 0  # bytes of tensors
        with self._writing():
            disk.prepare(self.path)
            if first and self.path.exists() and self._continue(first, digest):
                return
            self._file = self.path.open("w+b")
            try:
                self._file.write(self._reserve.to_bytes(8, "little") + b"{}".ljust(self._reserve))
                self._file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.close()
                disk.remove(self.path)
                raise

    def write(self, latents: Tensor) -> None:
        """Append one chunk [1, C, c, h, w] in its own dtype: float32, float16 or bfloat16.

        Raises:
            UserError: the file cannot grow; it still loads, with the chunks before this one.
            ValueError: another dtype, or the sink is closed.
        """
        if latents.dtype not in DTYPES:
            raise ValueError(f"latents are float32, float16 or bfloat16, not {latents.dtype}")
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        data = raw(latents)
        entry = {
            "dtype": DTYPES[latents.dtype],
            "shape": list(latents.shape),
            "data_offsets": [self._data, self._data + len(data)],
        }
        text = f'"{_key(self._next)}":' + json.dumps(entry, separators=(",", ":"))
        text = ("," if self.chunks else "") + text + "}"
        with self._writing():
            while self._header + len(text) > self._reserve:
                self._grow()
            self._append(data, text.encode())
        self._data += len(data)
        self._header += len(text) - 1
        self.chunks += 1
        self._next += 1

    def close(self) -> None:
        """Let go of the file, and remove it if nothing was written. Closing again does nothing.

        Raises:
            UserError: the disk refused in the end what it had taken.
        """
        file, self._file = self._file, None
        if file is not None:
            with self._writing():
                file.close()
            if not self.chunks:
                disk.remove(self.path)

    def _continue(self, first: int, digest: str | None) -> bool:
        """Open a file that begins with chunks 0 .. first - 1, and cut it behind them; False: it does not."""
        with contextlib.suppress(ValueError, KeyError, TypeError), self.path.open("r+b") as file:
            reserve = int.from_bytes(file.read(8), "little")
            if not 0 < reserve <= LARGEST_HEADER:
                return False
            entries = json.loads(file.read(reserve))
            kept = {key: entries[key] for key in map(_key, range(first))}
            end = 0
            for entry in kept.values():
                start, end_of = entry["data_offsets"]
                if start != end:
                    return False
                end = end_of
            if _sha256(file, end) != digest:
                return False
            header = json.dumps(kept, separators=(",", ":")).encode()
            if len(header) > reserve:
                return False
            file.seek(8)
            file.write(header.ljust(reserve))
            file.truncate(8 + reserve + end)
            self.chunks, self._reserve, self._header, self._data = first, reserve, len(header) - 1, end
            self._file = self.path.open("r+b")
            return True
        return False

    def _append(self, data: memoryview, entry: bytes) -> None:
        """Tensor bytes to the end, then their entry into the header; all of it or nothing."""
        end = 8 + self._reserve + self._data
        try:
            self._file.seek(end)
            self._file.write(data)
            self._file.flush()
            self._file.seek(8 + self._header)
            self._file.write(entry)
            self._file.flush()
            self.path.stat()  # an open file can be written whose folder is gone
        except OSError:
            # The buffer still holds what the disk refused: let it go with its file, and cut off what did arrive.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path, end)
                self._file = self.path.open("r+b")
            raise

    def _grow(self) -> None:
        """Rewrite the file with twice the room for its header, next to it, and put it in its place."""
        reserve = 2 * self._reserve
        if reserve > LARGEST_HEADER:
            raise OSError(f"safetensors holds no more than {self.chunks} chunks in one file")
        with disk.replacing(self.path) as aside, aside.open("w+b") as grown:
            self._file.seek(8)
            header = self._file.read(self._header + 1)
            grown.write(reserve.to_bytes(8, "little") + header.ljust(reserve))
            self._file.seek(8 + self._reserve)
            shutil.copyfileobj(self._file, grown, 1 << 20)
        self._file.close()
        self._file = self.path.open("r+b")
        self._reserve = reserve

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        kept = f"the file holds the first {self.chunks} chunks; " if self.chunks else ""
        return disk.writing(f"sink.latents={self.path}", remedy=kept + disk.REMEDY)


def _key(chunk: int) -> str:
    return f"chunk.{chunk:06d}"


def _sha256(file: BinaryIO, length: int) -> str | None:
    """Of the next `length` bytes; None: there are fewer."""
    found = hashlib.sha256()
    while length:
        block = file.read(min(length, 1 << 20))
        if not block:
            return None
        found.update(block)
        length -= len(block)
    return found.hexdigest()
