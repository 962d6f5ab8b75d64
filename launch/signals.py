"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 end a run: the first one cleanly, a second one at once.

A thread hears them, whatever the main thread is busy with: loading, starting Ray, waiting in a library. Handlers do
nothing; the interpreter's wake-up descriptor carries each signal's number to the thread.

SIGUSR1 is for batch systems, which may send it to any number of a run's processes, any number of times: it never counts
as a second signal. SIGHUP stays ignored where it was (`nohup`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EXIT_SIGNAL = 128
"""Plus the signal's number: the exit code of a process that a second signal ended."""
SHOW_CURSOR = "\x1b[?25h"


def leave(code: int) -> None:
    """End this process now, and all it has started, whatever its other threads are doing."""
    for child in descendants(os.getpid()):
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), SHOW_CURSOR.encode())
    os._exit(code)


def descendants(process: int) -> list[int]:
    """Processes that a process has started, and those that they have, parents first."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may hold anything; the parent is the second field behind it.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found[1:]


class Stop(threading.Event):
    """What signals have asked for: nothing yet; to stop (the event is set); to end at once (the process is gone).

    Until `then` says what a stop is to do, nothing has been streamed that could be lost, and a stop ends the process.

    Args:
        patience_s: a process that others wait for may want to tell them first, and has so long before it ends.
        echo_s: signals that come within this time of the first are the same one, passed on by a parent.
    """

    def __init__(self, patience_s: float = 0.0, echo_s: float = 0.0):
        super().__init__()
        self._patience_s, self._echo_s = patience_s, echo_s
        self._lock = threading.Lock()
        self._act: Callable[[], None] | None = None
        self._first = 0.0

    def then(self, act: Callable[[], None] = lambda: None) -> None:
        """From now on a stop calls `act`, from another thread; at once, if it has been asked for already."""
        with self._lock:
            self._act = act
            asked = self.is_set()
        if asked:
            act()

    def hear(self, number: int) -> None:
        """Take a signal in; never waits."""
        with self._lock:
            again, act = self.is_set(), self._act
            self.set()
        if not again:
            self._first = time.monotonic()
            if act:
                _aside(act)
            elif self._patience_s:
                _aside(lambda: self._told(number))
            else:
                give_up()
        elif number != signal.SIGUSR1 and time.monotonic() - self._first >= self._echo_s:
            leave(EXIT_SIGNAL + number)

    def _told(self, number: int) -> None:
        time.sleep(self._patience_s)
        if self._act is None:
            leave(EXIT_SIGNAL + number)


def _aside(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="stop", daemon=True).start()


def give_up(speaks: bool = True) -> None:
    """End a process that was told to stop before anything was streamed: there is nothing to lose, and no thread that
    loads need be waited for.
    """
    with suppress(OSError, ValueError):
        if speaks:
            print("stopped before anything was streamed", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    leave(0)


@contextmanager
def listening(patience_s: float = 0.0, echo_s: float = 0.0) -> Iterator[Stop]:
    """Hear signals while the context is open; in the main thread. The arguments are `Stop`'s."""
    stop = Stop(patience_s, echo_s)
    heard, told = socket.socketpair()
    told.setblocking(False)
    numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    waking = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda number, frame: None) for number in numbers}

    def hear() -> None:
        while data := heard.recv(64):
            for number in data:
                if number in numbers:
                    stop.hear(number)

    listener = threading.Thread(target=hear, name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waking)
        told.close()
        listener.join()
        heard.close()


@contextmanager
def stop_event() -> Iterator[Stop]:
    """An event that the first of the signals sets, for whoever looks at it often."""
    with listening() as stop:
        stop.then()
        yield stop


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put this process's handlers back after the enclosed call, which installs its own."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
