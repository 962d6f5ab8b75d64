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

Slot = tuple[str, int]
"""(The adapter's name, slot); of the tokens' own bank the name is empty."""


def banks_of(bank: Bank) -> Iterator[tuple[str, Bank]]:
    """A bank and its adapters' banks, each with what its names begin with."""
    yield "", bank
    for name, own in bank.adapters.items():
        yield f"{name}.", own


def pieces_of(bank: Bank) -> dict[Slot, dict[str, Tensor]]:
    """All that is in a bank and its adapters' banks, in their own memory: by slot, the pieces of every layer by name.

    Of a frame of the attention sink the keys are not among them: they are turned from the raw ones where they are read.
    """
    return _pieces(bank, {start: own.written for start, own in banks_of(bank)})


def changed_in(bank: Bank, among: Mapping[str, set[int]] | None = None) -> dict[Slot, dict[str, Tensor]]:
    """What of it was written since this was asked last.

    Args:
        among: slots that are asked about, by adapter; None: all.
    """
    changed = {}
    for start, own in banks_of(bank):
        slots = changed[start] = own.dirty if among is None else own.dirty & among[start.removesuffix(".")]
        own.dirty = own.dirty - slots
    return _pieces(bank, changed)


def _pieces(bank: Bank, slots: Mapping[str, set[int]]) -> dict[Slot, dict[str, Tensor]]:
    found = {}
    for start, own in banks_of(bank):
        for slot in slots[start]:
            if slot not in own.views:  # a bank's memory stays where it is
                own.views[slot] = {
                    f"{start}{kind}/{layer}/{slot}": _piece(own, kind, layer, slot)
                    for layer in own.keys
                    for kind in _kinds(own, slot)
                }
            found[start.removesuffix("."), slot] = own.views[slot]
    return found


def _piece(bank: Bank, kind: str, layer: int, slot: int) -> Tensor:
    if slot == CHOICE:
        return bank.choice[kind][layer]
    return getattr(bank, kind)[layer][:, _span(bank.layout, kind, slot)]


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


def _kinds(bank: Bank, slot: int) -> tuple[str, ...]:
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
