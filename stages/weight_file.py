"""Published weight files, read by key and by rows: safetensors (one, or shards with an index) and torch's `.pt`/`.pth`.

Both formats keep every tensor as one span of bytes, so opening a file reads names, types and places only, and reading
maps just the span that is asked for. The mapping goes when the tensor does: nothing of the file stays in memory.
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conf.errors import UserError
from conf.published import weight_files
from stages.file_form import AGAIN, CONVERT, ORIGINAL, SAFETENSORS, form, quantised, whole

PIECE = 1 << 21
"""Bytes read at once, at most: what a reader that converts or adds holds beside its own weights."""

WRAPPERS = ("generator_ema", "generator", "generator_lora", "model", "state_dict", "model_state_dict", "module", "ema")
"""Dictionaries around the weights in a `.pt`, the one to prefer first (averaged weights are what is evaluated)."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Types as a safetensors header spells them."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        key: its name in the file.
        file, offset: where its first element is, in bytes.
        dtype, shape, stride: stride in elements.
    """

    key: str
    file: Path
    offset: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        return self.stride == _strides(self.shape)


class WeightFile:
    """Tensors by name. Only names, types and places are read here.

    Args:
        path: a file, an index of shards, or a folder that holds either.
        setting: the configuration key, for error messages.
        rename: from a name in the file to ours.

    Attributes:
        name: setting and path, as error messages give them.
        entries: where every tensor lies, by our name.
        metadata: what safetensors files say beside them.
        bytes_read: so far: headers, and the spans of what was read.

    Raises:
        UserError: there is no such file, it is no file of weights, cut short or quantised, or two of its keys have one
            name here.
    """

    def __init__(
        self, path: str | Path, setting: str = "model.checkpoint", rename: Callable[[str], str] = lambda key: key
    ):
        self.path, self.name, self.bytes_read = Path(path), f"{setting}={path}", 0
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        for file, wanted in weight_files(path, setting).items():
            found = {entry.key: entry for entry in self._open(file)}
            for key in found if wanted is None else wanted:
                if key not in found:
                    raise self._error(f"{file.name} lacks {key}, which the index names", "download it again")
                self._add(rename(key), found[key])
        if not self.entries:
            raise self._error("holds no tensors", "name a file of weights")
        if how := quantised({entry.key: entry.dtype for entry in self.entries.values()}):
            raise self._error(f"is quantised {how}", ORIGINAL)

    def _add(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            raise self._error(f"{self.entries[name].key} and {entry.key} are both {name}", "keep one of them")
        self.entries[name] = entry

    def _error(self, rule: str, remedy: str) -> UserError:
        return UserError(self.name, rule, remedy)

    def _open(self, file: Path) -> Iterator[Entry]:
        read = self._safetensors if form(self.name, file) == SAFETENSORS else self._torch
        try:
            yield from read(file)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes of a library
            raise self._error(f"{file.name} is damaged ({type(error).__name__})", AGAIN) from error

    def _safetensors(self, file: Path) -> Iterator[Entry]:
        from safetensors import safe_open

        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        self.bytes_read += 8 + size
        self.metadata |= header.pop("__metadata__", None) or {}
        whole(self.name, file, 8 + size + max((said["data_offsets"][1] for said in header.values()), default=0))
        for key, said in header.items():
            if said["dtype"] not in DTYPES:
                raise self._error(f"{file.name} holds {key} as {said['dtype']}, which is not read here", ORIGINAL)
        with safe_open(file, framework="pt"):
            pass  # refuses tensors that overlap or leave gaps
        for key, said in header.items():
            shape = torch.Size(said["shape"])
            yield Entry(key, file, 8 + size + said["data_offsets"][0], DTYPES[said["dtype"]], shape, _strides(shape))

    def _torch(self, file: Path) -> Iterator[Entry]:
        # Never unpickle code: weights_only refuses everything but tensors and plain containers. On the meta device no
        # data is read, and every storage says where in the file it lies.
        try:
            with file.open("rb") as stream:  # of a path torch would believe the suffix
                content = torch.load(stream, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            if (found := re.search(r"GLOBAL ([\w.]+)", str(error))) is None:
                raise
            rule = f"{file.name} holds Python objects beside tensors ({found[1]}), and code is never run"
            raise self._error(rule, CONVERT) from error
        for key, tensor in self._unwrapped(content, file).items():
            storage = tensor.untyped_storage()
            offset = storage._checkpoint_offset + tensor.storage_offset() * tensor.dtype.itemsize
            yield Entry(key, file, offset, tensor.dtype, tensor.shape, tensor.stride())

    def _unwrapped(self, content: object, file: Path) -> dict[str, Tensor]:
        """The tensors of a loaded dictionary, wrappers taken off."""
        while isinstance(content, dict):
            inner = next((content[w] for w in WRAPPERS if isinstance(content.get(w), dict)), None)
            if inner is None:
                break
            content = inner
        if found := _tensors(content):
            return found
        inside = content if isinstance(content, dict) else {}
        holds = ", ".join(f"{str(key)[:40]} ({_described(value)})" for key, value in list(inside.items())[:6])
        likely = next((key for key, value in inside.items() if _tensors(value)), None)
        remedy = CONVERT if likely is None else f"save content[{likely!r}] of torch.load alone as .safetensors"
        raise self._error(f"{file.name} holds no tensors by name but {holds or _described(content)}", remedy)

    def rows(self, name: str) -> Iterator[slice]:
        """The rows (of the first dimension) of a tensor, as slices of at most `PIECE` bytes each."""
        entry = self.entries[name]
        count = entry.shape[0] if entry.shape else 1
        each = max(1, PIECE * count // max(1, entry.nbytes)) if entry.contiguous else count
        yield from (slice(start, min(count, start + each)) for start in range(0, count, each))

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of it, as it lies in the file: its type, on the CPU, memory-mapped.

        Only the span of those rows is mapped. It is read when it is used, and counted now.

        Args:
            name: one of `entries`.
            rows: with start and stop, in order; None: all.
        """
        entry = self.entries[name]
        shape, stride, offset = entry.shape, entry.stride, entry.offset
        if rows is not None and shape and entry.contiguous:
            offset += rows.start * stride[0] * entry.dtype.itemsize
            shape = torch.Size((rows.stop - rows.start, *shape[1:]))
        elements = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if shape.numel() else 0
        self.bytes_read += elements * entry.dtype.itemsize
        if not elements:
            return torch.empty(shape, dtype=entry.dtype)
        tensor = _mapped(entry.file, offset, elements, entry.dtype).as_strided(shape, stride)
        return tensor if rows is None or not shape or entry.contiguous else tensor[rows]


def _mapped(file: Path, offset: int, elements: int, dtype: torch.dtype) -> Tensor:
    """Elements of a file as a flat tensor, which owns the mapping."""
    skip = offset % mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as stream:
        # Private to this process: torch wants memory that may be written.
        span = mmap.mmap(
            stream.fileno(), skip + elements * dtype.itemsize, access=mmap.ACCESS_COPY, offset=offset - skip
        )
    return torch.frombuffer(span, dtype=dtype, count=elements, offset=skip)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _tensors(content: object) -> dict[str, Tensor]:
    """The tensors by name in what may be a dictionary."""
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}


def _described(value: object) -> str:
    """What something in a `.pt` is, in a word or two."""
    if tensors := _tensors(value):
        return f"{len(tensors)} tensors"
    sized = f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""
    return f"{type(value).__name__}{sized}"
