"""Banks in what is saved: how a bank is cut, written out to a state on disk, and filled again.

A state has a file for every level and layer, in physical slot order, whoever held them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.cut_banks import Slot, banks_of, changed_in, header_of, pieces_of
from runtime.cut_log import Log
from runtime.cuts import Cut
from runtime.early import Rewrites
from runtime.snapshot import FINISHED, Snapshot
from runtime.state import write
from stages.denoise.bank import ABSENT, OF_ALL_HEADS, PLACED, Bank
from stages.denoise.layout import Layout
from stages.denoise.share import Share

if TYPE_CHECKING:
    from runtime.saving import Mark, Saver


def _name(level: int, layer: int) -> str:
    return f"bank.level{level}.layer{layer:02d}"


def _by_layer(bank: Bank) -> dict[int, dict[str, Tensor]]:
    """What a bank holds, by layer: what is a layer's, and what is of all of them."""
    content = {tuple(key.rsplit(".", 1)): tensor for key, tensor in bank.export().items()}
    common = {key[0]: tensor for key, tensor in content.items() if len(key) == 1}
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        if len(key) == 2:
            layers.setdefault(int(key[1]), dict(common))[key[0]] = tensor
    return layers


def _frames(name: str, layout: Layout) -> int:
    """Frames that a bank's buffer has entries of."""
    return layout.anchored if name == "raw" else layout.frames


def cut_bank(
    saver: Saver,
    stream: int,
    chunk: int,
    name: str,
    level: int,
    bank: Bank | None,
    share: Share,
    finished: Mapping[str, Tensor],
    mark: Mark,
    rewrites: Rewrites | None = None,
) -> None:
    """Have a bank written as a part of the cut before `chunk`: what has changed since the one before.

    It is copied beside the passes that come, slot by slot, and those of them that write a slot which is still being
    copied wait for that slot.

    Args:
        name: of the part.
        bank: None: an emulated device has none.
        share: which part of it is here.
        finished: what is run again for a new prompt, where this is the bank that has it; nothing changes it.
        mark: what the mark says.
        rewrites: says which slots are written again soonest: those are copied first. None: in any order.
    """
    log, kept = saver.log(stream, name), {f"{FINISHED}/{key}": tensor for key, tensor in finished.items()}
    pieces = {} if bank is None else pieces_of(bank)
    names = [name for of_slot in pieces.values() for name in of_slot] + list(kept)
    changed = [name for of_slot in (changed_in(bank) if bank else {}).values() for name in of_slot]
    taken = log.missing(names, changed)
    log.let_go(mark.whole)
    try:
        of_slots = {at: {n: t for n, t in of.items() if n in taken} for at, of in pieces.items()}
        _bring(saver, log, bank, of_slots, rewrites.order(bank, chunk) if rewrites and bank else {})
        if again := {key: kept[key] for key in sorted(taken & kept.keys())}:
            saver.copy(log, again, *again.values())
    except BaseException:
        log.withdraw(taken)
        raise
    header = {"parts": 1, "rank": 0, "layers": {}} if bank is None else header_of(bank, share.parts, share.rank)
    content = header | {"level": level, "finished": list(finished)}

    brought = log.brought()
    write_part = partial(saver.write, stream, chunk, name, {}, names, content, mark, brought)
    saver.part(stream, chunk, name, write_part, brought[-1].copied if brought else None)


def copy_early(saver: Saver, stream: int, name: str, bank: Bank, chunk: int, rewrites: Rewrites) -> None:
    """Copy, before `chunk` begins, slots that the chunk behind it is going to write, for the cut between the two: so
    that chunk does not wait. What is written after this all the same is copied again by the cut."""
    log, changed = saver.log(stream, name), changed_in(bank, rewrites.behind(bank, chunk))
    try:
        _bring(saver, log, bank, changed, dict.fromkeys(changed, 0))
    except BaseException:
        log.withdraw(name for pieces in changed.values() for name in pieces)
        raise


def _bring(
    saver: Saver, log: Log, bank: Bank | None, slots: Mapping[Slot, Mapping[str, Tensor]], order: Mapping[Slot, int]
) -> None:
    """Copy pieces of slots of a bank, and note until when each slot is being copied. What the same pass is going to
    write is copied together, since that waits for all of it.

    Args:
        order: of the slots (`Rewrites.order`); those that it lacks are last, each by itself.
    """
    together: dict[tuple[int, str, int], list[Slot]] = {}
    for at in slots:
        if slots[at]:
            comes = order.get(at)
            together.setdefault((len(order), *at) if comes is None else (comes, "", 0), []).append(at)
    for _, ats in sorted(together.items()):
        point = saver.copy(log, {name: piece for at in ats for name, piece in slots[at].items()})
        for adapter, slot in ats if point else ():
            (bank.adapters[adapter] if adapter else bank).copying[slot] = point


def write_out(cut: Cut, folder: Path) -> dict[str, str]:
    """Write a whole cut to a state's folder, where parts of it may lie that come from other hosts; returns the files'
    names and sha256.

    Raises:
        OSError: the disk refuses.
    """
    found = {name: digest for file in cut.names for name, digest in write(folder, file, *cut.read(file)).items()}
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in found:
            path.unlink()
    return found


def load_bank(state: Snapshot, level: int, bank: Bank, share: Share) -> None:
    """Fill a bank with its layers of a state, and of each with what is this process's."""
    for start, own in banks_of(bank):
        content: dict[str, Tensor] = {}
        for layer, held in _by_layer(own).items():
            tensors, _ = state.read(_name(level, layer))
            for name in held:
                tensor = tensors[f"{start}{name}"]
                if name == PLACED:
                    content[name] = _agreed(content.get(name, tensor), tensor)
                elif name in OF_ALL_HEADS:
                    content[f"{name}.{layer}"] = tensor
                else:
                    content[f"{name}.{layer}"] = share.part(tensor, own.each, _frames(name, own.layout))
        if content:
            own.restore(content, state.chunk)


def _agreed(a: Tensor, b: Tensor) -> Tensor:
    """What two layers say of their attention sink; where they differ it is written again before it is read."""
    return a if torch.equal(a, b) else torch.where(a == b, a, torch.full_like(a, ABSENT))
