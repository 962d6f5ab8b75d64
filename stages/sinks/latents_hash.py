"""The hash of final latents, by which two runs are compared."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from stages.sinks.sha256 import Sha256


class LatentsHash:
    """sha256 over the raw bytes of latents, in the order they are added. A thread computes it, beside the stream.

    Args:
        resumable: whether `progress` will be asked for.
        progress: of another, to go on from.

    Raises:
        UserError: it is to be resumable, and there is no OpenSSL here.
    """

    def __init__(self, resumable: bool = False, progress: bytes | None = None):
        self._hash = Sha256(progress) if resumable or progress is not None else hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._last: Future | None = None

    def add(self, latents: Tensor) -> None:
        """Take in one chunk, of any shape and dtype; it must stay as it is."""
        self._wait()
        self._last = self._thread.submit(lambda: self._hash.update(raw(latents)))

    @property
    def hexdigest(self) -> str:
        """Of everything so far."""
        self._wait()
        return self._hash.hexdigest()

    @property
    def progress(self) -> bytes:
        """What another goes on from; a few bytes, whatever was added. Only of a resumable one."""
        self._wait()
        return self._hash.progress

    def _wait(self) -> None:
        if self._last:
            self._last.result()


def raw(latents: Tensor) -> memoryview:
    """The tensor's bytes in row-major order."""
    return memoryview(latents.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
