"""What workers say to each other: one message is a fixed-size host header and at most one packed body.

The header announces everything about the body, so the receiver can provide memory for it before it comes, and
both have one form for every kind of message. All tensors of a message travel as one buffer: one transfer per
hop, whatever the number of tensors.

    header [HEADER_BYTES] uint8, host:  fields | JSON of names and shapes | note | distances | moments | times
    body   [n] uint8, the tensors' device: each tensor contiguous, at an offset that is a multiple of ALIGN bytes
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from devices import Span

HEADER_BYTES = 4096
DUE = "due"
"""The moment at which a chunk has to be there, where somebody watches its stream live."""
KIND_BYTES = 16
# Vector loads and every dtype want alignment; 64 bytes is a cache line and more than any dtype needs.
ALIGN = 64

_MAGIC = b"EVF4"
# magic, kind, whether it is hollow, lengths of note and JSON, bytes of the body; stream, chunk, step, block, epoch;
# when it was sent, a timestep; how many distances, moments and times.
_FIELDS = struct.Struct(f"<4s{KIND_BYTES}s?xHIQ5qddHHH")
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
        kind: what it is, in ASCII, at most KIND_BYTES; `beat` is the channels' own sign of life and is never delivered.
        stream, chunk, step, block, epoch: what it is about, signed 64-bit.
        times: seconds spent so far, by worker index (signed 16-bit); they travel as float32.
        tensors: by name, all on one device; any shape, and any dtype of the table in this module. May be empty.
        note: anything else that is read on the host; short.
        distances: of the attention sink from the chunk, for every forward; read on the host.
        sent: when it was sent, in seconds; 0: it was not. By the sender's clock; channels turn it into the receiver's.
        moments: by name, in seconds of the same clock as `sent`; a few.
        timestep: that the network is told in the first step, of 1000, where that is the chunk's own; 0: it is not.
        hollow: its stream was cancelled or has failed: the message keeps its place in the order and has no tensors.
        spans: work that may not be over yet, by worker; it does not travel (see `settle`).
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
    moments: dict[str, float] = field(default_factory=dict)
    timestep: float = 0.0
    hollow: bool = False
    spans: list[tuple[int, Span]] = field(default_factory=list)

    def settle(self) -> Message:
        """Add what the work took to `times`, waiting until it is over: by whoever has seen that the tensors are there.

        Returns this message.
        """
        times = dict(self.times)  # other messages may have the same dictionary
        for worker, span in self.spans:
            times[worker] = times.get(worker, 0.0) + span.seconds
        self.times, self.spans = times, []
        return self

    def __str__(self) -> str:
        return f"{self.kind} of stream {self.stream} chunk {self.chunk} step {self.step} block {self.block}"


def pack(message: Message) -> tuple[Tensor, Tensor | None]:
    """(header, body) of a message; the body is None if it has no tensors.

    Raises:
        ValueError: a kind that is no short name, a dtype that cannot travel, a number too large, tensors on several
            devices or in a hollow message, or a header too long.
    """
    return pack_header(message), pack_body(message)


def unpack(header: Tensor, body: Tensor | None) -> Message:
    """The message of `pack`. Its tensors are views of `body`: they live as long as that memory is left alone.

    Raises:
        ValueError: not a header of ours, or a body that is shorter than announced.
    """
    raw = header.numpy().data
    kind, hollow, noted, length, size, *numbers, sent, timestep, distances, moments, times = _fields(raw)
    have = 0 if body is None else body.numel()
    if have < size:
        raise ValueError(f"body of {have} bytes: the header announces {size}")
    text, note = _FIELDS.size + length, _FIELDS.size + length + noted
    values = _numbers(distances, moments, times).unpack_from(raw, note)
    far, when, spent = values[:distances], values[distances : distances + moments], values[distances + moments :]
    places, names = _places(bytes(raw[_FIELDS.size : text]))
    return Message(
        kind.rstrip(b"\0").decode(),
        *numbers,
        times=dict(zip(spent[:times], spent[times:], strict=True)),
        tensors={name: body[start:end].view(dtype).view(shape) for name, dtype, shape, start, end in places},
        note=str(raw[text:note], "utf-8"),
        distances=far,
        sent=sent,
        moments=dict(zip(names, when, strict=True)),
        timestep=timestep,
        hollow=hollow,
    )


def body_bytes(header: Tensor) -> int:
    """Length in bytes of the body that a header announces; 0 if there is none.

    Raises:
        ValueError: not a header of ours.
    """
    return _fields(header.numpy().data)[4]


def pack_header(message: Message) -> Tensor:
    """The header alone: all that can be wrong with a message shows here, before any device work.

    Raises:
        ValueError: see `pack`.
    """
    kind = message.kind.encode()
    if not (0 < len(kind) <= KIND_BYTES and message.kind.isascii() and message.kind.isprintable()):
        raise ValueError(f"message kind {message.kind!r}: must be 1 to {KIND_BYTES} printable ASCII characters")
    if message.hollow and message.tensors:
        raise ValueError(f"{message}: it is hollow, but has tensors {', '.join(message.tensors)}")
    try:
        form = _form_of(message)
    except ValueError as error:
        raise ValueError(f"{message}: {error}") from None
    note, text = message.note.encode(), form.text
    counts = len(message.distances), len(message.moments), len(message.times)
    packed = _numbers(*counts)
    needed = len(text) + len(note) + packed.size
    if needed > HEADER_BYTES - _FIELDS.size:
        raise ValueError(
            f"{message}: names, shapes, note, distances, moments and times of {counts[-1]} workers need {needed} bytes "
            f"of header, there are {HEADER_BYTES - _FIELDS.size}"
        )
    numbers = message.stream, message.chunk, message.step, message.block, message.epoch
    header = bytearray(HEADER_BYTES)
    try:
        times = message.sent, message.timestep
        _FIELDS.pack_into(
            *(header, 0, _MAGIC, kind, message.hollow, len(note), len(text), form.size), *numbers, *times, *counts
        )
        start = _FIELDS.size + len(text)
        header[_FIELDS.size : start] = text
        header[start : start + len(note)] = note
        values = (*message.distances, *message.moments.values(), *message.times, *message.times.values())
        packed.pack_into(header, start + len(note), *values)
    except (struct.error, OverflowError) as error:
        rule = "its numbers must be signed 64-bit integers, workers signed 16-bit and times float32"
        raise ValueError(f"{message}: {rule} ({error})") from None
    return torch.frombuffer(header, dtype=torch.uint8)


def pack_body(message: Message, buffer: Tensor | None = None) -> Tensor | None:
    """The body alone, [n] uint8: always a copy, so the tensors are free afterwards.

    Between an accelerator and pinned memory the copies are work of the calling thread's queue, and nobody waits here.

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
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
    return buffer[: form.size]


class _Form(NamedTuple):
    """What messages with the same names, shapes and dtypes share. Made once: packing is on every hop's way.

    Attributes:
        text: JSON of the header: [[[name, dtype, shape, offset] of every tensor], [names of moments]].
        offsets: of each tensor in the body.
        size: of the body, in bytes. Empty tensors still make one: it tells the device.
    """

    text: bytes
    offsets: tuple[int, ...]
    size: int


def _form_of(message: Message) -> _Form:
    tensors = tuple((name, t.dtype, t.shape, t.device) for name, t in message.tensors.items())
    return _form(tensors, tuple(message.moments))


@lru_cache(_FORMS)
def _form(tensors: tuple[tuple[str, torch.dtype, torch.Size, torch.device], ...], moments: tuple[str, ...]) -> _Form:
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
    text = json.dumps([entries, moments], separators=(",", ":")).encode()
    return _Form(text, tuple(entry[3] for entry in entries), max(end, ALIGN) if tensors else 0)


@lru_cache(_FORMS)
def _places(text: bytes) -> tuple[list[tuple[str, torch.dtype, list[int], int, int]], list[str]]:
    """Name, dtype, shape, start and end of every tensor in a body; names of moments."""
    entries, moments = json.loads(text)
    places = [
        (name, _DTYPES[dtype], shape, start, start + math.prod(shape) * _DTYPES[dtype].itemsize)
        for name, dtype, shape, start in entries
    ]
    return places, moments


@lru_cache(_FORMS)
def _numbers(distances: int, moments: int, times: int) -> struct.Struct:
    """How so many distances, moments, workers and their times are packed. Workers have 16 bits and times 32: of 600
    workers they fit into a header, and a time is right to a ten millionth.
    """
    return struct.Struct(f"<{distances}q{moments}d{times}h{times}f")


def _fields(raw: memoryview) -> tuple:
    magic, *rest = _FIELDS.unpack_from(raw)
    if magic != _MAGIC:
        raise ValueError(f"not a message header of this version: it starts with {bytes(raw[:4]).hex()}")
    return tuple(rest)
