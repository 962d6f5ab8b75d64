"""Tensors of the device: wrappers of host tensors, whose every operation is noted and then done on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.double.ledger import LEDGER, Line, Memory, Part
from tests.double.module import KIND, Stream, current_device, current_stream

aten = torch.ops.aten
HOST = torch.device("cpu")
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Take indices from the host, too."""
WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    **dict.fromkeys(
        (
            aten.equal.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
            aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
        )
    ),
}  # fmt: skip
"""Operations whose result the host must see, and what that is called; None: as torch calls them."""


class Held(Tensor):
    """A tensor that lies in memory which is watched.

    Attributes:
        raw: the host tensor with its values.
        memory: what it lies in.
    """

    raw: Tensor
    memory: Memory

    @property
    def part(self) -> Part:
        """From its first byte to its last."""
        raw = self.raw
        start, last = raw.storage_offset(), sum((n - 1) * step for n, step in zip(raw.shape, raw.stride(), strict=True))
        size = raw.element_size()
        return Part(self.memory, start * size, (start + last + 1) * size)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class OnCard(Held):
    """A tensor of a card."""

    @staticmethod
    def __new__(cls, raw: Tensor, card: int) -> OnCard:
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return Tensor._make_wrapper_subclass(cls, raw.size(), **layout, device=torch.device(KIND, card))

    def __init__(self, raw: Tensor, card: int):
        self.raw, self.memory = raw, LEDGER.memory(raw, current_stream(card).line)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnCard) -> None:
        Tensor.data.__set__(self, value)
        self.raw, self.memory = value.raw, value.memory

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{KIND}:{self.device.index} {self.raw!r}"

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Stream) -> None:
        self.memory.recorded.add(stream.line.number)

    def pin_memory(self, device: object = None) -> Tensor:
        raise RuntimeError("cannot pin a tensor of a card")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("a tensor of a card is copied to the host before it is written")


class Pinned(Held):
    """A tensor in pinned host memory: real memory, so that transports can read and write it."""

    @staticmethod
    def of(raw: Tensor) -> Pinned:
        made = Tensor._make_subclass(Pinned, raw)
        made.raw, made.memory = raw, LEDGER.memory(raw, LEDGER.host)
        return made

    def is_pinned(self, device: object = None) -> bool:
        return True

    def numpy(self, *, force: bool = False) -> Any:
        _note(LEDGER.host, "numpy", [self.part], [])
        return self.raw.numpy()

    def tolist(self) -> Any:
        _note(LEDGER.host, "tolist", [self.part], [])
        return self.raw.tolist()


def _card(tensor: Tensor) -> int | None:
    """Of a tensor; None: the host's."""
    return tensor.device.index if isinstance(tensor, OnCard) else None


def _target(device: Any) -> int | None:
    """The card that an operation is asked to put its result on; None: the host's."""
    device = torch.device(device)
    if device.type != KIND:
        return None
    return current_device() if device.index is None else device.index


def _note(line: Line, what: str, reads: list[Part], writes: list[Part]) -> None:
    if reads or writes:
        LEDGER.work(line, what, reads, writes)


def _wrap(raw: Tensor, card: int | None, pinned: bool = False) -> Tensor:
    if card is not None:
        return OnCard(raw, card)
    return Pinned.of(raw) if pinned else raw


@cache
def _uses(func: Any) -> tuple[tuple[str, str], ...]:
    """Names of an operation's arguments, and what is done to them: `read`, `write`, or nothing (`view`)."""
    how = {None: "read", True: "write", False: "view"}
    return tuple((a.name, how[a.alias_info and a.alias_info.is_write]) for a in func._schema.arguments)


def _dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    if func is aten._has_compatible_shallow_copy_type.default:
        return all(isinstance(t, OnCard) for t in args)
    if func in COPIES:
        return (_to_copy if func is aten._to_copy.default else _copy)(*args, **kwargs)
    tensors: list[Tensor] = []

    def taken(t: Tensor) -> Tensor:
        tensors.append(t)
        return _raw(t)

    raw_args = _mapped(taken, args)
    raw_kwargs = {name: _mapped(taken, value) for name, value in kwargs.items()}
    card = _one_card(func, tensors)
    known = {id(t.raw): t for t in tensors if isinstance(t, Held)}
    target = card
    if raw_kwargs.get("device") is not None:
        target, raw_kwargs = _target(raw_kwargs["device"]), raw_kwargs | {"device": HOST}
    if raw_kwargs.get("pin_memory"):
        raw_kwargs = raw_kwargs | {"pin_memory": False}
    line = LEDGER.host if card is None else current_stream(card).line
    reads, writes = _touched(func, args, kwargs)
    _note(line, func.name(), reads, writes)
    if card is not None and (kind := _wait_of(func, args)):
        LEDGER.wait(kind, line.clock)
    out = func(*raw_args, **raw_kwargs)
    for tensor in tensors:
        if isinstance(tensor, OnCard) and tensor.shape != tensor.raw.shape:
            raise NotImplementedError(f"{func} changes a tensor's shape in place")
    pinned = {id(t.memory) for t in tensors if isinstance(t, Pinned)}

    def wrapped(raw: Tensor) -> Tensor:
        if id(raw) in known:
            return known[id(raw)]
        return _wrap(raw, target, bool(pinned) and id(LEDGER.known(raw)) in pinned)

    return _mapped(wrapped, out)


def _mapped(do: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The tensors among an operation's arguments or results; lists are all that they may be in."""
    if isinstance(value, Tensor):
        return do(value)
    if isinstance(value, list):
        return [_mapped(do, one) for one in value]
    return tuple(_mapped(do, one) for one in value) if isinstance(value, tuple) else value


def _raw(t: Tensor) -> Tensor:
    return t.raw if isinstance(t, Held) else t


def _one_card(func: Any, tensors: list[Tensor]) -> int | None:
    """The card that an operation runs on; None: the host. Raises where torch does on a GPU."""
    cards = {card for t in tensors if (card := _card(t)) is not None}
    hosts = [t for t in tensors if not isinstance(t, OnCard) and t.dim()]
    if len(cards) > 1 or (cards and hosts and func not in INDEXING):
        found = ", ".join(sorted({str(t.device) for t in tensors}))
        raise RuntimeError(f"{func.name()}: expected all tensors to be on the same device, but found {found}")
    return next(iter(cards), None)


def _touched(func: Any, args: tuple, kwargs: dict) -> tuple[list[Part], list[Part]]:
    """What an operation reads and what it writes."""
    found: dict[str, list[Part]] = {"read": [], "write": [], "view": []}
    for position, (name, how) in enumerate(_uses(func)):
        given = args[position] if position < len(args) else kwargs.get(name)
        for t in given if isinstance(given, (list, tuple)) else (given,):
            if isinstance(t, Held) and t.numel():
                found[how].append(t.part)
    return found["read"], found["write"]


def _wait_of(func: Any, args: tuple) -> str | None:
    """What the host is held for by an operation, if it is."""
    if func in INDEXING:
        given = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in given):
            return "nonzero"
        return "from host" if any(not isinstance(i, OnCard) for i in given) else None
    return (WAITING[func] or func.name()) if func in WAITING else None


# -- copies -----------------------------------------------------------------------------------------------------------


def _to_copy(
    source: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> Tensor:
    target = _card(source) if device is None else _target(device)
    raw = aten._to_copy.default(_raw(source), dtype=dtype, memory_format=memory_format)
    # torch pins what it is to copy to without waiting.
    pinned = bool(pin_memory) or (non_blocking and target is None and isinstance(source, OnCard))
    made = _wrap(raw, target, pinned)
    _copied(made, source, non_blocking)
    return made


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _copied(target, source, non_blocking)
    _raw(target).copy_(_raw(source))
    return target


def _copied(target: Tensor, source: Tensor, non_blocking: bool) -> None:
    """Note a copy: on which queue, and whether the host waits."""
    cards = _card(source), _card(target)
    line = next((current_stream(card).line for card in cards if card is not None), LEDGER.host)
    reads, writes = ([t.part] if isinstance(t, Held) and t.numel() else [] for t in (source, target))
    if None not in cards and cards[0] != cards[1]:
        # torch copies on the source's queue, behind the target's and before what that is given next.
        other = current_stream(cards[1]).line
        LEDGER.follow(line, other.clock, other.now)
        _note(line, "copy", reads, writes)
        LEDGER.follow(other, line.clock, line.now)
        return
    _note(line, "copy", reads, writes)
    if line is not LEDGER.host and None in cards and target.numel():
        host = target if cards[1] is None else source
        if not (non_blocking and isinstance(host, Pinned)):
            LEDGER.wait("to host" if host is target else "from host", line.clock)


# -- what begins without a tensor of the device -----------------------------------------------------------------------


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    return OnCard(torch.empty(size, dtype=dtype, memory_format=memory_format), _target(device or KIND))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return OnCard(torch.empty_strided(size, stride, dtype=dtype), _target(device or KIND))


def _arange(*bounds, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return OnCard(torch.arange(*bounds, dtype=dtype), _target(device or KIND))


KERNELS: dict[str, Callable] = {
    **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _arange),
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_to_copy": _to_copy,
    "copy_": _copy,
}
"""What torch calls for the kind of device itself."""
