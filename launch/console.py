"""What a run says on standard output and error, whether or not somebody still reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Lasting:
    """A text stream that outlives its reader: from the first write that fails on, what is said goes nowhere.

    A terminal is closed, `| head` has seen enough, a log's disk is full: no reason to lose a stream. Whatever writes is
    covered, since all of it (prints, warnings, progress, tracebacks) looks up `sys.stdout` and `sys.stderr`.

    Args:
        stream: standard output or error. Attributes that are not here are its own.
        errors: those of the system after which nothing more is said; none: all. What fails otherwise is raised.
    """

    def __init__(self, stream: TextIO, *errors: int):
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        """Write a text, or let it go."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or let it go."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BlockingIOError:
            pass  # a reader that is slow, not gone
        except OSError as error:
            if self._errors and error.errno not in self._errors:
                raise
            self._silence()

    def _silence(self) -> None:
        """What is buffered would fail again at the end of the process, and turn its exit code into a lie."""
        with suppress(OSError, ValueError):  # it may have no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextmanager
def lasting(*errors: int) -> Iterator[None]:
    """Standard output and error outlive their readers while the context is open; `errors` as `Lasting` has them."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = tuple(stream and Lasting(stream, *errors) for stream in kept)
    try:
        yield
    finally:
        for stream in filter(None, ours):
            stream.flush()
        sys.stdout, sys.stderr = kept
