"""Weights: seeded random ones, or from published files, with every mismatch named."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import devices
from conf.errors import UserError
from devices import Mark
from stages.weight_file import WeightFile

IGNORED = re.compile(r"(.*\.)?(freqs(_cis|_cos|_sin)?|token_freqs|inv_freq|_extra_state)")
"""Names of tensors that some savers add and no weight is: tables that are computed here."""

AHEAD = 2
"""Pieces on their way to a device while the host reads the next one: each of them is held in pinned memory."""

Change = Callable[[str, slice, Tensor], Tensor]
"""change(name, rows, values) -> values: what to make of some rows as they are read."""

Count = Callable[[int], None]
"""Hears of bytes of weights as they are there."""


def ignored(more: int) -> None:
    """A `Count` that nobody asks."""


class _Unset(TorchFunctionMode):
    """Leaves weights as they are where a module would draw its first ones."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None  # what a module draws into is there already
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def outline() -> Iterator[None]:
    """Modules that are made inside have shapes and no values: they take neither memory nor time.

    Drawing first weights even of nothing would import the compiler, which takes seconds.
    """
    with torch.device("meta"), _Unset():
        yield


def empty(make: Callable[[], nn.Module], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """A module in its place and type, with room for its weights and nothing else."""
    with outline():
        module = make().to(dtype)
    # `Module.to_empty` asks a tensor without values for its like, which imports sympy: most of a second.
    room = {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in module.state_dict().items()}
    module.load_state_dict(room, assign=True)
    return module


def initialise(module: nn.Module, seed: int, prefix: str = "", count: Count = ignored) -> None:
    """Random weights, each a pure function of (seed, its name), so that a block range gets the whole's values.

    Matrices are scaled by fan-in; gains stay near one, biases and tables small. Nothing is left at zero, so
    every path of the network takes part in tests.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            key = hashlib.sha256(f"{seed}/{prefix}{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:4], "little"))
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "modulation" not in name.rsplit(".", 1)[-1]:
                values *= parameter[0].numel() ** -0.5
            elif "norm" in name and name.endswith("weight"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            parameter.copy_(values)
            count(parameter.nbytes)


def first(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, for a message."""
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def check(file: WeightFile, whole: Mapping[str, torch.Size]) -> None:
    """Refuse a file that is not of a model with these weights, before any of them is read.

    Args:
        whole: every weight of the model, those of other workers too.

    Raises:
        UserError: a key means nothing to the model, or a shape differs.
    """
    unknown = [e.key for name, e in file.entries.items() if name not in whole and not IGNORED.fullmatch(name)]
    if unknown:
        raise UserError(
            file.name,
            f"has {len(unknown)} keys that this model does not have: {first(unknown)}",
            "is it of this model?",
        )
    for name in file.entries:
        if name in whole:
            _same_shape(file, name, whole[name])


def _same_shape(file: WeightFile, name: str, expected: torch.Size) -> None:
    entry = file.entries[name]
    if entry.shape != expected:
        raise UserError(
            file.name,
            f"{entry.key} must have shape {list(expected)}, found {list(entry.shape)}",
            "is it a checkpoint of this model?",
        )


@torch.no_grad()
def load(
    module: nn.Module, file: WeightFile, prefix: str = "", change: Change | None = None, count: Count = ignored
) -> None:
    """Fill every parameter and buffer of `module` from the keys `prefix + name` of `file`, and read no other key.

    Rows go from the mapped file to the module a few megabytes at a time, so that memory holds the module and little
    else. To a device that works by itself they are copied while the next are read.

    Args:
        module: on its device and dtype; values are converted.
        file: where from.
        prefix: before every name in the file.
        change: applied to what is read, on the module's device.
        count: hears of the module's bytes as they come.

    Raises:
        UserError: a key is missing, its shape differs (names the key, expected and found), or its values are not
            finite.
    """
    state = module.state_dict()
    missing = [name for name in state if prefix + name not in file.entries]
    if missing:
        raise UserError(
            file.name,
            f"lacks {len(missing)} of {len(state)} keys: {first(prefix + name for name in missing)}",
            "is it a checkpoint of this model?",
        )
    for name, target in state.items():
        _same_shape(file, prefix + name, target.shape)
    seen: list[tuple[str, Tensor]] = []
    under_way: deque[Mark | None] = deque()
    for name, target in state.items():
        device = devices.of(target.device)
        for rows in file.rows(prefix + name):
            values = device.upload(file.read(prefix + name, rows))
            if change is not None:
                values = change(prefix + name, rows, values)
            own = target[rows] if target.ndim else target
            seen.append((file.entries[prefix + name].key, extremes(own.copy_(values))))
            under_way.append(device.mark())
            if len(under_way) > AHEAD and (mark := under_way.popleft()):
                mark.wait()
            count(own.nbytes)
    require_finite(file.name, seen)


def extremes(values: Tensor) -> Tensor:
    """The smallest and the largest value, [2] float32 on their device; one that is not finite shows in these."""
    if not values.numel():
        return torch.zeros(2, device=values.device)
    return torch.stack(torch.aminmax(values)).float()


def require_finite(where: str, seen: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are not all finite: whatever is computed with them would be nothing. One copy to the host.

    Args:
        where: they come from, with its setting.
        seen: keys, and the `extremes` of their values.

    Raises:
        UserError: names the first key.
    """
    keys, found = [key for key, _ in seen], [values for _, values in seen]
    finite = torch.stack(found).isfinite().all(1).tolist() if found else []
    if not all(finite):
        key = keys[finite.index(False)]
        raise UserError(
            where,
            f"{key} holds values that are not finite (NaN, infinity, or beyond the range of model.dtype)",
            "download the file again; of float16, try model.dtype=bfloat16",
        )
