"""Banks in a saved state: a file for every level and layer, in physical slot order, whoever holds them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from runtime.state import State, write
from stages.denoise.bank import ABSENT, Bank
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


def _of_heads(tensor: Tensor) -> bool:
    """Whether it has heads, [1, tokens, heads, head_dim], which the processes of a worker share."""
    return tensor.ndim == 4


def cut_bank(level: int, bank: Bank, share: Share) -> dict[str, dict[str, Tensor]]:
    """What a bank holds now, on the host: tensors by file of a state and name. Nothing that comes changes them.

    Of processes that share the bank's heads all make this call; the first has all heads, the others nothing.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for layer, tensors in _by_layer(bank).items():
        whole = {name: share.whole(t) if _of_heads(t) else t for name, t in tensors.items()}
        if all(t is not None for t in whole.values()):
            files[_name(level, layer)] = {name: t.to("cpu", copy=True) for name, t in whole.items()}
    return files


def write_cut(folder: Path, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Write what was cut to a state; returns the files' names and sha256.

    Raises:
        OSError: the disk refuses.
    """
    return {name: digest for file, tensors in files.items() for name, digest in write(folder, file, tensors).items()}


def load_bank(state: State, level: int, bank: Bank, share: Share) -> None:
    """Fill a bank with its layers of a state, and of each with the heads that are this process's."""
    content: dict[str, Tensor] = {}
    for layer in _by_layer(bank):
        tensors, _ = state.read(_name(level, layer))
        for name, tensor in tensors.items():
            if _of_heads(tensor):
                content[f"{name}.{layer}"] = share.part(tensor)
            else:
                content[name] = _agreed(content.get(name, tensor), tensor)
    bank.restore(content)


def _agreed(a: Tensor, b: Tensor) -> Tensor:
    """What two layers say of their attention sink; where they differ it is written again before it is read."""
    return a if torch.equal(a, b) else torch.where(a == b, a, torch.full_like(a, ABSENT))
