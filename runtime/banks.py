"""Banks in what is saved: how a bank is cut, written out to a state on disk, and filled again.

A state has a file for every level and layer, in physical slot order, whoever held them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime.cut_banks import banks_of, changed_in, header_of, piece_of, pieces_of
from runtime.cuts import Cut
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
) -> None:
    """Have a bank written as a part of the cut before `chunk`: what has changed since the one before.

    It is copied beside the passes that come, and those of them that write what is still being copied wait for it.

    Args:
        name: of the part.
        bank: None: an emulated device has none.
        share: which part of it is here.
        finished: what is run again for a new prompt, where this is the bank that has it; nothing changes it.
        mark: what the mark says.
    """
    log, kept = saver.log(stream, name), {f"{FINISHED}/{key}": tensor for key, tensor in finished.items()}
    slots = {} if bank is None else pieces_of(bank)
    taken = log.missing([*slots, *kept], [] if bank is None else changed_in(bank))
    copies, after, download = {}, None, saver.device.download
    try:
        with saver.copies(*(kept[key] for key in taken & kept.keys())):
            for key in sorted(taken):
                copies[key] = download(kept[key] if key in kept else piece_of(bank, key))
            after = saver.device.mark()
    except BaseException:
        log.withdraw(taken)
        raise
    if after is not None and bank is not None:
        _copying(bank, taken & slots.keys(), after)
    header = {"parts": 1, "rank": 0, "layers": {}} if bank is None else header_of(bank, share.parts, share.rank)
    content = header | {"level": level, "finished": list(finished)}

    write_part = partial(saver.write, stream, chunk, name, copies, [*slots, *kept], content, mark)
    saver.part(stream, chunk, name, write_part, after)


def _copying(bank: Bank, names: Iterable[str], mark: Any) -> None:
    """Note until when slots are being copied."""
    for start, own in banks_of(bank):
        for name in names:
            kind, _, slot = name.rsplit("/", 2)
            if kind.rpartition(".")[0] == start.removesuffix("."):
                own.copying[int(slot)] = mark


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
