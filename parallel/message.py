"""What workers say to each other: one message is a fixed-size host header and at most one packed body.

The header announces everything about the body, so the receiver can provide memory for it before it comes, and
both have one form for every kind of message. All tensors of a message travel as one buffer: one transfer per
hop, whatever the number of tensors.

    header [HEADER_BYTES] uint8, host:  fields | JSON [[name, dtype, shape, offset], ...] | note | distances | times
    body   [n] uint8, the tensors' device: each tensor contiguous, at an offset that is a multiple of ALIGN bytes
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = (
    "step",
    "prefill",
    "commit",
    "final",
    "sound",
    "done",
    "end",
    "call",
    "beat",
    "save",
    "recache",
    "stage",
    "sidecar",
)
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
HEADER_BYTES = 4096
# Vector loads and every dtype want alignment; 64 bytes is a cache line and more than any dtype needs.
ALIGN = 64

_MAGIC = b"EVF2"
# magic, kind, lengths of note and JSON, bytes of the body; stream, chunk, step, block, epoch; when it was sent; how
# many distances and times.
_FIELDS = struct.Struct("<4sBxHIQ5qdHH")
_DISTANCE, _TIME = struct.Struct("<q"), struct.Struct("<qd")
_FORMS = 256
"""Forms of messages remembered: a stream has a handful."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass
class Message:
    """One item of the route.

    Attributes:
        kind: one of KINDS; `beat` is the channels' own sign of life and is never delivered.
        stream, chunk, step, block, epoch: what it is about, signed 64-bit.
        times: seconds spent so far, by worker index; a handful. `sent`: when it was, by the sender's clock.
        distances: of the attention sink from the chunk, for every forward; read on the host.
        note: anything else that is read on the host; short.
        tensors: by name, all on one device; any shape, and any dtype of the table in this module. May be empty.
    """

    kind: str
    stream: int = 0
    chunk: int = 0
    step: int = 0
    block: int = 0
    epoch: int = 0
    times: dict[int, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""
    distances: tuple[int, ...] = ()
    sent: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} of stream {self.stream} chunk {self.chunk} step {self.step} block {self.block}"


def pack(message: Message) -> tuple[Tensor, Tensor | None]:
    """(header, body) of a message; the body is None if it has no tensors.

    Raises:
        ValueError: unknown kind, dtype or number too large, tensors on several devices, or a header too long.
    """
    return pack_header(message), pack_body(message)


def unpack(header: Tensor, body: Tensor | None) -> Message:
    """The message of `pack`. Its tensors are views of `body`: they live as long as that memory is left alone.

    Raises:
        ValueError: not a header of ours, or a body that is shorter than announced.
    """
    raw = header.numpy().data
    kind, noted, length, size, *numbers, sent, distances, times = _fields(raw)
    have = 0 if body is None else body.numel()
    if have < size:
        raise ValueError(f"body of {have} bytes: the header announces {size}")
    ends = list(accumulate((_FIELDS.size, length, noted, distances * _DISTANCE.size, times * _TIME.size)))
    text, note, far, spent = (raw[start:end] for start, end in pairwise(ends))
    return Message(
        KINDS[kind],
        *numbers,
        dict(_TIME.iter_unpack(spent)),
        {name: body[start:end].view(dtype).view(shape) for name, dtype, shape, start, end in _places(bytes(text))},
        str(note, "utf-8"),
        tuple(distance for (distance,) in _DISTANCE.iter_unpack(far)),
        sent,
    )


def body_bytes(header: Tensor) -> int:
    """Length in bytes of the body that a header announces; 0 if there is none.

    Raises:
        ValueError: not a header of ours.
    """
    return _fields(header.numpy().data)[3]


def pack_header(message: Message) -> Tensor:
    """The header alone: all that can be wrong with a message shows here, before any device work.

    Raises:
        ValueError: see `pack`.
    """
    if message.kind not in _NUMBERS:
        raise ValueError(f"message kind {message.kind!r}: must be one of {', '.join(KINDS)}")
    try:
        form = _form_of(message)
    except ValueError as error:
        raise ValueError(f"{message}: {error}") from None
    note = message.note.encode()
    rest = message.sent, len(message.distances), len(message.times)
    numbers = message.stream, message.chunk, message.step, message.block, message.epoch
    try:
        content = b"".join((
            _FIELDS.pack(_MAGIC, _NUMBERS[message.kind], len(note), len(form.text), form.size, *numbers, *rest),
            form.text,
            note,
            *(_DISTANCE.pack(distance) for distance in message.distances),
            *(_TIME.pack(worker, seconds) for worker, seconds in message.times.items()),
        ))  # fmt: skip
    except struct.error as error:
        raise ValueError(f"{message}: its numbers must be signed 64-bit integers ({error})") from None
    if len(content) > HEADER_BYTES:
        needed, room = len(content) - _FIELDS.size, HEADER_BYTES - _FIELDS.size
        raise ValueError(f"{message}: names, shapes, times and note need {needed} bytes of header, there are {room}")
    return torch.frombuffer(bytearray(content.ljust(HEADER_BYTES, b"\0")), dtype=torch.uint8)


def pack_body(message: Message, buffer: Tensor | None = None) -> Tensor | None:
    """The body alone, [n] uint8: always a copy, so the tensors are free afterwards.

    Args:
        message: one that `pack_header` accepts.
        buffer: at least `body_bytes` uint8 to pack into, on any device; new memory on the tensors' device if None.
    """
    if not message.tensors:
        return None
    form = _form_of(message)
    if buffer is None:
        buffer = torch.empty(form.size, dtype=torch.uint8, device=next(iter(message.tensors.values())).device)
    for offset, tensor in zip(form.offsets, message.tensors.values(), strict=True):
        place = buffer[offset : offset + tensor.nbytes]
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return buffer[: form.size]


class _Form(NamedTuple):
    """What messages with tensors of the same names, shapes and dtypes share. Made once: packing is on every hop's way.

    Attributes:
        text: JSON of the header.
        offsets: of each tensor in the body.
        size: of the body, in bytes. Empty tensors still make one: it tells the device.
    """

    text: bytes
    offsets: tuple[int, ...]
    size: int


def _form_of(message: Message) -> _Form:
    return _form(tuple((name, t.dtype, t.shape, t.device) for name, t in message.tensors.items()))


@lru_cache(_FORMS)
def _form(tensors: tuple[tuple[str, torch.dtype, torch.Size, torch.device], ...]) -> _Form:
    devices = {str(device) for *_, device in tensors}
    if len(devices) > 1:
        raise ValueError(f"its tensors must be on one device, not on {', '.join(sorted(devices))}")
    entries, end = [], 0
    for name, dtype, shape, _ in tensors:
        known = str(dtype).removeprefix("torch.")
        if known not in _DTYPES:
            raise ValueError(f"tensor {name} is {known}; can travel: {', '.join(_DTYPES)}")
        start = -(-end // ALIGN) * ALIGN
        entries.append([name, known, list(shape), start])
        end = start + math.prod(shape) * dtype.itemsize
    text = json.dumps(entries, separators=(",", ":")).encode()
    return _Form(text, tuple(entry[3] for entry in entries), max(end, ALIGN) if tensors else 0)


@lru_cache(_FORMS)
def _places(text: bytes) -> list[tuple[str, torch.dtype, list[int], int, int]]:
    """Name, dtype, shape, start and end of every tensor in a body."""
    return [
        (name, _DTYPES[dtype], shape, start, start + math.prod(shape) * _DTYPES[dtype].itemsize)
        for name, dtype, shape, start in json.loads(text)
    ]


def _fields(raw: memoryview) -> tuple[int, ...]:
    magic, kind, *rest = _FIELDS.unpack_from(raw)
    if magic != _MAGIC or kind >= len(KINDS):
        raise ValueError(f"not a message header of this version: it starts with {bytes(raw[:5]).hex()}")
    return kind, *rest
