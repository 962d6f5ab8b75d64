"""Bytes that tensors take while something runs, counted as they come and go, on any device.

On torch's meta device nothing is computed and no memory is taken, so that what a network of full size takes is known
before it is there. Every call of torch counts as one piece of work with its results, in inference mode: what a kernel
takes for itself inside it is not seen.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Counts storages from the moment they appear in a result until nobody has them, within one thread.

    Use it as a context, again and again: what appeared in it is followed outside, too.

    Attributes:
        held: bytes now.
        peak: most bytes at once so far.
    """

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        self._lock = threading.RLock()  # an object may go while another is noted

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these, too: they were there before."""
        for tensor in tensors:
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        before = {self._key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for one in tree_leaves(result):
            # Views, and what is written in place, are of what was given.
            if isinstance(one, Tensor) and self._key(one) not in before:
                self._note(one)
        return result

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if key in self._known:
                return
            self.held += size
            self.peak = max(self.peak, self.held)
            self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        with self._lock:
            del self._known[key]
            self.held -= size


def nbytes(shape: Iterable[int], dtype: torch.dtype) -> int:
    """Of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize
