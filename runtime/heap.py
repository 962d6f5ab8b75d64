"""The C library's heap, of a process that goes on for long while threads come and go."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8
"""As malloc.h of glibc has it."""
ARENAS = 2


def few_arenas() -> None:
    """Have threads share heaps, from now on. Called first of all in a worker's process.

    glibc gives every thread a heap of its own, up to eight for each processor, and what was freed in one is not used in
    another: a worker whose streams come and go, each with some threads, grows by tens of megabytes until all are there.
    Nothing happens where the C library is another.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
