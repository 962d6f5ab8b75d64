"""The module that torch has for the device, as `torch.cuda` is for GPUs: queues, events, cards and figures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from tests.double.ledger import LEDGER, Clock, Line

KIND = "twin"
CARDS = 2
BYTES = 1 << 33
"""Of a card's memory."""
PATIENCE = 3
"""How often an event that nobody waits for is asked before it is done."""


class _Now(threading.local):
    """What is current in a thread."""

    card = 0

    def __init__(self):
        self.queues = dict(enumerate(_DEFAULT))


def _number(device: object) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


class Stream:
    """A queue."""

    def __init__(self, device: object = None, priority: int = 0, line: Line | None = None):
        self.line = LEDGER.line(_number(device)) if line is None else line

    @property
    def device(self) -> torch.device:
        return torch.device(KIND, self.line.card)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def query(self) -> bool:
        return self.record_event().query()

    def synchronize(self) -> None:
        LEDGER.wait("queue", self.line.clock)


class Event:
    """A point in a queue; one that was not recorded is no point, and nobody waits for it.

    Those with times are for reading a clock: whoever waits for one has not put anything in order by that, since some
    thread that only measures could hide from all others that an edge is missing.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self._timing, self._asked, self._done = enable_timing, 0, False
        self._clock, self._at = Clock(), 0.0

    def record(self, stream: Stream | None = None) -> None:
        line = (stream or current_stream()).line
        LEDGER.work(line, "record", [], [])
        self._clock, self._at, self._asked, self._done = Clock(line.clock), line.now, 0, False

    def wait(self, stream: Stream | None = None) -> None:
        LEDGER.follow((stream or current_stream()).line, self._clock, self._at)

    def query(self) -> bool:
        self._asked += 1
        self._done = self._done or LEDGER.done(self._clock) or self._asked > PATIENCE
        if self._done and not self._timing:
            LEDGER.seen(self._clock)
        return self._done

    def synchronize(self) -> None:
        if not (self._done or LEDGER.done(self._clock)):
            LEDGER.wait("event", Clock() if self._timing else self._clock)
        self._done = True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from here to `end`, by the device's clock; raises as torch's where one of them is not done."""
        if not (self._timing and end._timing):
            raise RuntimeError("both events must have been made with enable_timing=True")
        if not (self._clock and end._done):
            raise RuntimeError("device not ready: both events must be completed before their time is asked")
        return 1e3 * (end._at - self._at)


# -- functions of the module, under torch's names ---------------------------------------------------------------------


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def manual_seed_all(seed: int) -> None:
    """There are no generators of its own."""


def get_amp_supported_dtype() -> list[torch.dtype]:
    return []


def device_count() -> int:
    return CARDS


def current_device() -> int:
    return _NOW.card


def set_device(device: object) -> None:
    _NOW.card = _number(device)


def current_stream(device: object = None) -> Stream:
    return _NOW.queues[_number(device)]


def default_stream(device: object = None) -> Stream:
    return _DEFAULT[_number(device)]


def set_stream(stream: Stream) -> None:
    """As torch's: the queue's card becomes the thread's, too."""
    _NOW.card = stream.line.card
    _NOW.queues[stream.line.card] = stream


@contextmanager
def stream(queue: Stream) -> Iterator[None]:
    card, before = _NOW.card, current_stream(queue.line.card)
    set_stream(queue)
    try:
        yield
    finally:
        set_stream(before)
        _NOW.card = card


@contextmanager
def device(device: object) -> Iterator[None]:
    before, _NOW.card = _NOW.card, _number(device)
    try:
        yield
    finally:
        _NOW.card = before


def synchronize(device: object = None) -> None:
    done = Clock()
    for line in LEDGER.all_of(_number(device)):
        done.join(line.clock)
    LEDGER.wait("device", done)


def memory_allocated(device: object = None) -> int:
    return LEDGER.bytes[_number(device)]


def memory_reserved(device: object = None) -> int:
    return memory_allocated(device)


def max_memory_allocated(device: object = None) -> int:
    return LEDGER.peak[_number(device)]


def reset_peak_memory_stats(device: object = None) -> None:
    LEDGER.peak[_number(device)] = memory_allocated(device)


def mem_get_info(device: object = None) -> tuple[int, int]:
    return BYTES - memory_allocated(device), BYTES


def empty_cache() -> None:
    """Nothing is kept."""


def get_device_properties(device: object = None) -> SimpleNamespace:
    return SimpleNamespace(uuid=f"{KIND}-{_number(device)}", total_memory=BYTES, name=get_device_name(device))


def get_device_name(device: object = None) -> str:
    return f"Twin {_number(device)}"


def get_device_capability(device: object = None) -> tuple[int, int]:
    return 9, 0


def get_rng_state(device: object = None) -> torch.Tensor:
    """Every draw is the processor's."""
    return torch.empty(0, dtype=torch.uint8)


def set_rng_state(state: torch.Tensor, device: object = None) -> None:
    """There is none."""


_DEFAULT = [Stream(line=LEDGER.line(card)) for card in range(CARDS)]
_NOW = _Now()
