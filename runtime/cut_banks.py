"""Banks in cuts: which pieces a bank consists of, and banks joined again from the pieces of whoever had them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from stages.denoise.bank import ABSENT, OF_ALL_HEADS, PLACED, Bank
from stages.denoise.layout import CHOICE, FIXED, Layout
from stages.denoise.share import joined

KEYS, VALUES, RAW = "keys", "values", "raw"


def banks_of(bank: Bank) -> Iterator[tuple[str, Bank]]:
    """A bank and its adapters' banks, each with what its names begin with."""
    yield "", bank
    for name, own in bank.adapters.items():
        yield f"{name}.", own


def pieces_of(bank: Bank) -> dict[str, int]:
    """Names of all that is in a bank and its adapters' banks, and the slot that each is of.

    Of a frame of the attention sink the keys are not among them: they are turned from the raw ones where they are read.
    """
    return {
        f"{start}{name}/{layer}/{slot}": slot
        for start, own in banks_of(bank)
        for slot in own.written
        for layer in own.keys
        for name in _names(own, slot)
    }


def changed_in(bank: Bank, among: Mapping[str, set[int]] | None = None) -> list[str]:
    """Those of them that were written since this was asked last.

    Args:
        among: slots that are asked about, by adapter; None: all.
    """
    found = []
    for start, own in banks_of(bank):
        slots = own.dirty if among is None else own.dirty & among[start.removesuffix(".")]
        own.dirty = own.dirty - slots
        found += [f"{start}{n}/{layer}/{s}" for s in slots for layer in own.keys for n in _names(own, s)]
    return found


def slot_of(name: str) -> tuple[str, int]:
    """Of which adapter's bank one of them is, and of which slot; the name of a bank's own adapter is empty."""
    kind, _, slot = name.rsplit("/", 2)
    return kind.rpartition(".")[0], int(slot)


def piece_of(bank: Bank, name: str) -> Tensor:
    """One of them, in the bank's own memory."""
    adapter, slot = slot_of(name)
    kind, layer, _ = name.rsplit("/", 2)
    kind, own = kind.rpartition(".")[2], bank.adapters[adapter] if adapter else bank
    if slot == CHOICE:
        return own.choice[kind][int(layer)]
    return getattr(own, kind)[int(layer)][:, _span(own.layout, kind, slot)]


def header_of(bank: Bank, parts: int, rank: int) -> dict[str, Any]:
    """What is to be known of a bank to join it with the other processes' parts of it."""
    found = {}
    for start, own in banks_of(bank):
        for layer, keys in own.keys.items():
            found[f"{start}{layer}"] = {
                "layout": astuple(own.layout),
                "each": own.each,
                "heads": list(keys.shape[2:]),
                "dtype": str(keys.dtype).removeprefix("torch."),
                "choice": {name: list(held[layer].shape) for name, held in own.choice.items()},
            }
    return {"parts": parts, "rank": rank, "layers": found}


def layer_of(layer: int, members: Sequence[tuple[Mapping[str, Any], Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """A layer's tensors as they are in a file of a state, adapters' included.

    Args:
        members: of every process that has heads of it, by rank: (header, pieces of the layer by name).
    """
    found: dict[str, Tensor] = {}
    for key, header in members[0][0]["layers"].items():
        start, _, number = key.rpartition(".")
        start = f"{start}." if start else ""
        if int(number) != layer:
            continue
        layout = Layout(*header["layout"])
        found[f"{start}{PLACED}"] = torch.full((layout.anchored,), ABSENT, dtype=torch.int64)
        for kind in (KEYS, VALUES, RAW):
            frames = layout.anchored if kind == RAW else layout.frames
            parts = [_buffer(said["layers"][key], f"{start}{kind}/{layer}/", kind, held) for said, held in members]
            found[f"{start}{kind}"] = _joined(parts, header["each"], frames)
        for kind in header.get("choice", {}):
            parts = [
                _choice(said["layers"][key], f"{start}{kind}/{layer}/{CHOICE}", kind, held) for said, held in members
            ]
            found[f"{start}{kind}"] = parts[0] if kind in OF_ALL_HEADS else _joined(parts, header["each"], 0)
    return found


def _buffer(header: Mapping[str, Any], start: str, kind: str, pieces: Mapping[str, Tensor]) -> Tensor:
    """A member's buffer of a layer, with zeros where nothing was written."""
    layout = Layout(*header["layout"])
    size = layout.anchored * layout.tokens if kind == RAW else layout.size
    made = torch.zeros(1, size, *header["heads"], dtype=getattr(torch, header["dtype"]))
    for name, piece in pieces.items():
        if name.startswith(start):
            made[:, _span(layout, kind, int(name.removeprefix(start)))] = piece
    return made


def _choice(header: Mapping[str, Any], name: str, kind: str, pieces: Mapping[str, Tensor]) -> Tensor:
    """A member's part of what a choice needs, with zeros where nothing was written."""
    dtype = OF_ALL_HEADS.get(kind, getattr(torch, header["dtype"]))
    return pieces[name] if name in pieces else torch.zeros(header["choice"][kind], dtype=dtype)


def _joined(parts: Sequence[Tensor], each: str, frames: int) -> Tensor:
    return parts[0] if len(parts) == 1 else joined(torch.stack(tuple(parts)), each, frames)


def _names(bank: Bank, slot: int) -> tuple[str, ...]:
    """What a slot has pieces of."""
    if slot == CHOICE:
        return tuple(bank.choice)
    return (RAW if 0 <= slot < bank.layout.anchored else KEYS), VALUES


def _span(layout: Layout, kind: str, slot: int) -> slice:
    """Entries of a slot in a layer's buffer."""
    if slot == FIXED:
        return slice(0, layout.fixed)
    if kind == RAW:
        return slice(slot * layout.tokens, (slot + 1) * layout.tokens)
    return layout.span(slot, 1)
