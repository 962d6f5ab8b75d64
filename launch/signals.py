"""Ctrl-C, SIGTERM and SIGUSR1 end streams at the next chunk; a second Ctrl-C or SIGTERM ends the process at once.

SIGUSR1 is for batch systems, which may send it to any number of a run's processes, any number of times.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put this process's handlers back after the enclosed call, which installs its own."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that the first of the signals sets."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set() and number != signal.SIGUSR1:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
