"""A recorder that records like a CUDA graph, on any device: the work's Python runs once, its operations run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = (aten.item.default, aten.is_nonzero.default, aten._local_scalar_dense.default)
"""Operations that give the host a number."""


def _storages(values: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values) if isinstance(t, Tensor)}


class Tape(TorchDispatchMode):
    """The operations of some work, with the tensors and numbers they were given.

    Playing it runs no Python of the work: it reads and writes the same memory, and every number of the host stays what
    it was when it was recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._given: set[int] = set()
        """Memory that was there before."""
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """What was in that memory before the work wrote it: (the memory as bytes, a copy)."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in WAITS:
            raise RuntimeError("a graph cannot wait for the device")
        kwargs = kwargs or {}
        self._keep(operation, args, kwargs)
        made = operation(*args, **kwargs)
        self._given |= _storages((args, kwargs)) - self._made
        self._made |= _storages(made) - self._given
        self.operations.append((operation, args, kwargs, made))
        return made

    def _keep(self, operation: Any, args: Any, kwargs: Any) -> None:
        """Note what an operation is about to write over."""
        named = zip(operation._schema.arguments, args, strict=False)
        written = [value for argument, value in named if argument.alias_info and argument.alias_info.is_write]
        written += [kwargs[a.name] for a in operation._schema.arguments if a.name in kwargs and a.is_out]
        for tensor in tree_leaves(written):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._made and memory.data_ptr() not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(memory)
                self._before[memory.data_ptr()] = whole, whole.clone()

    def spoil(self) -> None:
        """Leave nothing of what the work made or wrote: a recording computes nothing, its first playing does."""
        for memory, before in self._before.values():
            memory.copy_(before)
        for _, _, _, made in self.operations:
            for tensor in tree_leaves(made):
                own = isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self._made
                if own and tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def play(self) -> None:
        for operation, args, kwargs, recorded in self.operations:
            made = operation(*args, **kwargs)
            for new, place in zip(tree_leaves(made), tree_leaves(recorded), strict=True):
                if isinstance(new, Tensor) and new.data_ptr() != place.data_ptr():
                    place.copy_(new)


class Replays:
    """Records tapes.

    Attributes:
        recorded, replayed: how often.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        self.recorded += 1
        with Tape() as tape:
            out = work()
        tape.spoil()

        def replay() -> Tensor | None:
            self.replayed += 1
            tape.play()
            return out

        return replay
