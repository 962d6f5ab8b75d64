"""Hashes that can be kept and taken up again equal hashlib's."""

import hashlib

import pytest

from conf.errors import UserError
from stages.sinks import sha256
from stages.sinks.sha256 import PROGRESS_BYTES, Sha256

DATA = bytes(range(256)) * 40


@pytest.mark.parametrize("at", [0, 1, 55, 56, 63, 64, 65, 5000, len(DATA)])
def test_taken_up_anywhere_it_is_hashlibs(at):
    first = Sha256()
    first.update(DATA[:at])
    assert first.hexdigest() == hashlib.sha256(DATA[:at]).hexdigest()
    second = Sha256(first.progress)
    second.update(memoryview(bytearray(DATA))[at:])
    assert second.hexdigest() == hashlib.sha256(DATA).hexdigest()
    assert len(first.progress) == PROGRESS_BYTES


def test_without_openssl_one_line_says_so(monkeypatch):
    monkeypatch.setattr(sha256, "_names", lambda: ["libnosuchthing.so"])
    sha256._crypto.cache_clear()
    with pytest.raises(UserError, match="OpenSSL is not found"):
        Sha256()
    monkeypatch.undo()
    sha256._crypto.cache_clear()
