"""What workers say to each other: one message is a fixed-size host header and at most one packed body.

The header announces everything about the body, so the receiver can provide memory for it before it comes, and
both have one form for every kind of message. All tensors of a message travel as one buffer: one transfer per
hop, whatever the number of tensors.

    header [HEADER_BYTES] uint8, host:  fields | JSON {"tensors": [[name, dtype, shape, offset], ...], ...}
    body   [n] uint8, the tensors' device: each tensor contiguous, at an offset that is a multiple of ALIGN bytes
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field

import torch
from torch import Tensor

KINDS = ("step", "prefill", "commit", "final", "sound", "done", "end", "call", "beat")
HEADER_BYTES = 4096
# Vector loads and every dtype want alignment; 64 bytes is a cache line and more than any dtype needs.
ALIGN = 64

_MAGIC = b"EVF1"
# magic, kind, length of the JSON, bytes of the body; then stream, chunk, step, block, epoch.
_FIELDS = struct.Struct("<4sB3xIQ5q")
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
        times: seconds spent so far, by worker index; a handful.
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
    raw = header.numpy().tobytes()
    kind, length, size, *numbers = _fields(raw)
    have = 0 if body is None else body.numel()
    if have < size:
        raise ValueError(f"body of {have} bytes: the header announces {size}")
    extra = json.loads(raw[_FIELDS.size : _FIELDS.size + length])
    tensors = {}
    for name, dtype_name, shape, offset in extra["tensors"]:
        dtype = _DTYPES[dtype_name]
        end = offset + math.prod(shape) * dtype.itemsize
        tensors[name] = body[offset:end].view(dtype).view(shape)
    times = {int(k): v for k, v in extra["times"].items()}
    return Message(KINDS[kind], *numbers, times, tensors, extra.get("note", ""), tuple(extra.get("distances", ())))


def body_bytes(header: Tensor) -> int:
    """Length in bytes of the body that a header announces; 0 if there is none.

    Raises:
        ValueError: not a header of ours.
    """
    return _fields(header.numpy()[: _FIELDS.size].tobytes())[2]


def pack_header(message: Message) -> Tensor:
    """The header alone: all that can be wrong with a message shows here, before any device work.

    Raises:
        ValueError: see `pack`.
    """
    if message.kind not in KINDS:
        raise ValueError(f"message kind {message.kind!r}: must be one of {', '.join(KINDS)}")
    devices = {str(tensor.device) for tensor in message.tensors.values()}
    if len(devices) > 1:
        raise ValueError(f"{message}: its tensors must be on one device, not on {', '.join(sorted(devices))}")
    offsets, size = _layout(message.tensors)
    entries = []
    for name, tensor in message.tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ValueError(f"{message}: tensor {name} is {dtype}; can travel: {', '.join(_DTYPES)}")
        entries.append([name, dtype, list(tensor.shape), offsets[name]])
    times = {int(worker): float(seconds) for worker, seconds in message.times.items()}
    extra = {"tensors": entries, "times": times}
    extra |= {"note": message.note} if message.note else {}
    extra |= {"distances": message.distances} if message.distances else {}
    extra = json.dumps(extra, separators=(",", ":")).encode()
    room = HEADER_BYTES - _FIELDS.size
    if len(extra) > room:
        raise ValueError(
            f"{message}: names, shapes, times and note need {len(extra)} bytes of header, there are {room}"
        )
    numbers = (message.stream, message.chunk, message.step, message.block, message.epoch)
    raw = bytearray(HEADER_BYTES)
    try:
        _FIELDS.pack_into(raw, 0, _MAGIC, KINDS.index(message.kind), len(extra), size, *numbers)
    except struct.error as error:
        raise ValueError(f"{message}: its numbers must be signed 64-bit integers ({error})") from None
    raw[_FIELDS.size : _FIELDS.size + len(extra)] = extra
    return torch.frombuffer(raw, dtype=torch.uint8)


def pack_body(message: Message, buffer: Tensor | None = None) -> Tensor | None:
    """The body alone, [n] uint8: always a copy, so the tensors are free afterwards.

    Args:
        message: one that `pack_header` accepts.
        buffer: at least `body_bytes` uint8 to pack into, on any device; new memory on the tensors' device if None.
    """
    if not message.tensors:
        return None
    offsets, size = _layout(message.tensors)
    if buffer is None:
        buffer = torch.empty(size, dtype=torch.uint8, device=next(iter(message.tensors.values())).device)
    for name, tensor in message.tensors.items():
        place = buffer[offsets[name] : offsets[name] + tensor.nbytes]
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return buffer[:size]


def _layout(tensors: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    """Offset of each tensor and length of the body, bytes. Empty tensors still make a body: it tells the device."""
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = -(-end // ALIGN) * ALIGN
        end = offsets[name] + tensor.nbytes
    return offsets, max(end, ALIGN) if tensors else 0


def _fields(raw: bytes) -> tuple[int, ...]:
    magic, kind, length, size, *numbers = _FIELDS.unpack_from(raw)
    if magic != _MAGIC or kind >= len(KINDS):
        raise ValueError(f"not a message header of this version: it starts with {raw[:5].hex()}")
    return kind, length, size, *numbers
