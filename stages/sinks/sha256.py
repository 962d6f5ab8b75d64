"""SHA-256 whose progress can be kept and taken up again later: hashlib's cannot.

The work is OpenSSL's, through the functions that take their whole state from the caller (`SHA256_CTX`, see
SHA256_Init(3)). They are looked up in the library that hashlib itself uses, and tried against hashlib before use.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import hashlib
from functools import cache

from conf.errors import UserError

PROGRESS_BYTES = 112
"""Of a SHA256_CTX: eight words of digest, two of length, sixteen of data, two counters, four bytes each."""


class Sha256:
    """Like `hashlib.sha256()`; `progress` goes on where another left off.

    Raises:
        UserError: there is no OpenSSL here that does this.
    """

    def __init__(self, progress: bytes | None = None):
        self._crypto = _crypto()
        self._context = ctypes.create_string_buffer(PROGRESS_BYTES)
        if progress is None:
            self._crypto.SHA256_Init(self._context)
        else:
            self._context.raw = progress

    def update(self, data: memoryview | bytes) -> None:
        """Take in bytes."""
        view = memoryview(data).cast("B")
        if view.readonly:
            view = memoryview(bytearray(view))
        if len(view):
            self._crypto.SHA256_Update(self._context, (ctypes.c_char * len(view)).from_buffer(view), len(view))

    @property
    def progress(self) -> bytes:
        """Everything that goes on from here, always `PROGRESS_BYTES` long."""
        return self._context.raw

    def hexdigest(self) -> str:
        """Of everything so far; more may follow."""
        last, digest = ctypes.create_string_buffer(self._context.raw, PROGRESS_BYTES), ctypes.create_string_buffer(32)
        self._crypto.SHA256_Final(digest, last)
        return digest.raw.hex()


@cache
def _crypto() -> ctypes.CDLL:
    for name in _names():
        with contextlib.suppress(OSError, AttributeError):
            found = ctypes.CDLL(name)
            found.SHA256_Init.argtypes = [ctypes.c_void_p]
            found.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
            found.SHA256_Final.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            if _right(found):
                return found
    raise UserError(
        "libcrypto", "OpenSSL is not found, which hashes what is resumed", "install libssl3, or save nothing"
    )


def _names() -> list[str]:
    """Libraries that may hold OpenSSL: what hashlib is linked to first."""
    with contextlib.suppress(ImportError):
        import _hashlib

        if path := getattr(_hashlib, "__file__", None):
            return [path, *filter(None, [ctypes.util.find_library("crypto")])]
    return list(filter(None, [ctypes.util.find_library("crypto")]))


def _right(crypto: ctypes.CDLL) -> bool:
    """Whether it hashes as hashlib does, in one go and taken up in the middle of a block."""
    data = bytes(range(200))
    first, digest = ctypes.create_string_buffer(PROGRESS_BYTES), ctypes.create_string_buffer(32)
    crypto.SHA256_Init(first)
    crypto.SHA256_Update(first, data, 77)
    second = ctypes.create_string_buffer(first.raw, PROGRESS_BYTES)
    crypto.SHA256_Update(second, data[77:], len(data) - 77)
    crypto.SHA256_Final(digest, second)
    return digest.raw == hashlib.sha256(data).digest()
