"""Banks in a saved state: a file for every level and layer, in physical slot order, whoever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from runtime.state import State, write
from stages.denoise.bank import ABSENT, PLACED, Bank, Layout
from stages.denoise.share import Share


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


def _parts(bank: Bank) -> Iterator[tuple[str, Bank]]:
    """A bank and its adapters' banks, each with what its names in a state begin with."""
    yield "", bank
    for name, own in bank.adapters.items():
        yield f"{name}.", own


def cut_bank(level: int, bank: Bank, share: Share) -> dict[str, dict[str, Tensor]]:
    """What a bank holds now, on the host: tensors by file of a state and name. Nothing that comes changes them.

    Of processes that share the bank all make this call; the first has all of it, the others nothing.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for start, own in _parts(bank):
        for layer, tensors in _by_layer(own).items():
            whole = {
                name: t if name == PLACED else share.whole(t, own.each, _frames(name, own.layout))
                for name, t in tensors.items()
            }
            if all(t is not None for t in whole.values()):
                content = files.setdefault(_name(level, layer), {})
                content |= {f"{start}{name}": t.to("cpu", copy=True) for name, t in whole.items()}
    return files


def write_cut(folder: Path, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Write what was cut to a state; returns the files' names and sha256.

    Raises:
        OSError: the disk refuses.
    """
    return {name: digest for file, tensors in files.items() for name, digest in write(folder, file, tensors).items()}


def load_bank(state: State, level: int, bank: Bank, share: Share) -> None:
    """Fill a bank with its layers of a state, and of each with what is this process's."""
    for start, own in _parts(bank):
        content: dict[str, Tensor] = {}
        for layer, held in _by_layer(own).items():
            tensors, _ = state.read(_name(level, layer))
            for name in held:
                tensor = tensors[f"{start}{name}"]
                if name == PLACED:
                    content[name] = _agreed(content.get(name, tensor), tensor)
                else:
                    content[f"{name}.{layer}"] = share.part(tensor, own.each, _frames(name, own.layout))
        if content:
            own.restore(content)


def _agreed(a: Tensor, b: Tensor) -> Tensor:
    """What two layers say of their attention sink; where they differ it is written again before it is read."""
    return a if torch.equal(a, b) else torch.where(a == b, a, torch.full_like(a, ABSENT))
