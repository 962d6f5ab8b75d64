"""What the device notes: the order of accesses by vector clocks, host waits, and bytes.

A queue's clock counts the work it was given, and of other queues what an edge has put before its own next work. The
host has one clock for all its threads: what it gives comes after everything that it has waited for. An access is a
count of one queue; it comes before another queue's work if that queue's clock has it.

A GPU's allocator gives memory out again, to the queue that asked for it, as soon as the last tensor is gone. So asking
for memory is an access like writing, and giving back what another queue may still use is a fault.

Where it sees too little: a wait of any thread counts for all, so it may hide that another thread lacks an edge. Where
too much: of one allocation, what a tensor touches is told apart by its first and last byte, so an edge is asked for
between two whose elements lie among each other.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

ROOT = Path(__file__).resolve().parents[2]
OWN = Path(__file__).parent
KERNEL_S = 1e-3
"""What every piece of work takes, by the device's clock."""
NEAR = 3
"""Lines of ours that an access is remembered with."""

_PLACES: dict[str, str] = {}


def _place(file: str) -> str:
    """A file's name in the repository; empty: it is not ours."""
    if file not in _PLACES:
        path = Path(file)
        ours = path.is_relative_to(ROOT) and not path.is_relative_to(OWN) and "site-packages" not in path.parts
        _PLACES[file] = str(path.relative_to(ROOT)) if ours else ""
    return _PLACES[file]


def lines(most: int | None = None) -> Iterator[str]:
    """The lines of ours that are being run, from inside: `runtime/run.py:120 Stream._finish`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and most != 0:
        if place := _place(frame.f_code.co_filename):
            yield f"{place}:{frame.f_lineno} {frame.f_code.co_qualname}"
            most = None if most is None else most - 1
        frame = frame.f_back


class Clock(dict[int, int]):
    """How far queues are, by number."""

    def join(self, other: Clock) -> None:
        for queue, count in other.items():
            if count > self.get(queue, 0):
                self[queue] = count

    def has(self, access: Access) -> bool:
        return self.get(access.queue, 0) >= access.count


@dataclass
class Line:
    """A queue, or the host.

    Attributes:
        number, card: which; the host has card -1.
        clock: how far it is, and what is before its next work.
        now: the device's time at which it will have done all it was given, in seconds.
    """

    number: int
    card: int
    clock: Clock = field(default_factory=Clock)
    now: float = 0.0

    def __str__(self) -> str:
        return "the host" if self.card < 0 else f"queue {self.number} of card {self.card}"


@dataclass(frozen=True)
class Access:
    """The `count`-th work of a queue touched some memory."""

    queue: int
    count: int
    what: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} at {' < '.join(self.where) or '?'}"


@dataclass(frozen=True)
class Wait:
    """A host thread was held until work was done.

    Attributes:
        kind: `item`, `to host`, `from host`, `event`, `queue`, `device`, or the operation.
        thread: its name.
        trace: lines of ours, from inside.
    """

    kind: str
    thread: str
    trace: tuple[str, ...]

    def within(self, *names: str) -> bool:
        """Whether one of these functions (`Denoiser.step`) or files was being run."""
        return any(name in line.replace(":", " ").split() for line in self.trace for name in names)

    def __str__(self) -> str:
        return f"{self.kind} on {self.thread}: {' < '.join(self.trace[:4])}"


@dataclass(frozen=True)
class Touch:
    """Bytes `start` to `stop` of some memory were accessed."""

    start: int
    stop: int
    access: Access

    def meets(self, part: Part) -> bool:
        return self.start < part.stop and part.start < self.stop

    def within(self, part: Part) -> bool:
        return part.start <= self.start and self.stop <= part.stop


@dataclass(frozen=True)
class Part:
    """Some bytes of some memory."""

    memory: Memory
    start: int
    stop: int

    def touched(self, access: Access) -> Touch:
        return Touch(self.start, self.stop, access)


class Memory:
    """One piece of memory, of a card or pinned; it lives as long as a tensor refers to it."""

    def __init__(self, ledger: Ledger, storage: torch.UntypedStorage, owner: Line):
        self.ledger, self.storage, self.owner = ledger, storage, owner
        self.recorded: set[int] = set()
        """Queues whose work the allocator waits for before it gives the memory out again."""
        self.wrote: list[Touch] = []
        """The latest of every part."""
        self.reads: list[Touch] = []
        """Since a part was written last, the latest of each queue."""

    @property
    def pinned(self) -> bool:
        return self.owner.card < 0

    def __del__(self) -> None:
        self.ledger.given_back(self)


class Ledger:
    """Everything that is noted, of all cards.

    Attributes:
        waits: of the host.
        bytes, peak: held by tensors, now and at most, by card.
    """

    def __init__(self):
        self._lock = threading.RLock()
        self._lines: list[Line] = []
        self._memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
        self.host = self.line(-1)
        self._faults: dict[tuple[str, ...], str] = {}
        self.waits: list[Wait] = []
        self.bytes: Counter[int] = Counter()
        self.peak: defaultdict[int, int] = defaultdict(int)

    def begin(self) -> None:
        """A new test: everything is done, and nothing noted."""
        with self._lock:
            for line in self._lines:
                self.host.clock.join(line.clock)
            self._faults.clear()
            self.waits.clear()

    def line(self, card: int) -> Line:
        """A new queue of a card."""
        with self._lock:
            line = Line(len(self._lines), card)
            self._lines.append(line)
            return line

    # -- memory -------------------------------------------------------------------------------------------------------

    def memory(self, tensor: torch.Tensor, owner: Line) -> Memory:
        """What a host tensor lies in; memory not seen before is new, and `owner`'s."""
        storage = tensor.untyped_storage()
        with self._lock:
            memory = self._memories.get(storage._cdata)
            if memory is None:
                memory = self._memories[storage._cdata] = Memory(self, storage, owner)
                self.bytes[owner.card] += storage.nbytes()
                self.peak[owner.card] = max(self.peak[owner.card], self.bytes[owner.card])
                if not memory.pinned:
                    taken = Access(owner.number, owner.clock.get(owner.number, 0), "taken", tuple(lines(NEAR)))
                    memory.wrote = [Touch(0, storage.nbytes(), taken)]
            return memory

    def known(self, tensor: torch.Tensor) -> Memory | None:
        """The watched memory that a host tensor lies in."""
        return self._memories.get(tensor.untyped_storage()._cdata)

    def given_back(self, memory: Memory) -> None:
        """The last tensor in some memory is gone. Of pinned memory torch waits for copies by itself."""
        with self._lock:
            self.bytes[memory.owner.card] -= memory.storage.nbytes()
            if memory.pinned:
                return
            for access in (touch.access for touch in (*memory.wrote, *memory.reads)):
                own = access.queue in {memory.owner.number, *memory.recorded}
                if not (own or memory.owner.clock.has(access) or self.host.clock.has(access)):
                    self._fault("it is given back", tuple(lines(NEAR)), memory.owner, access)

    def all_of(self, card: int) -> list[Line]:
        return [line for line in self._lines if line.card == card]

    # -- order --------------------------------------------------------------------------------------------------------

    def work(self, line: Line, what: str, reads: list[Part], writes: list[Part]) -> None:
        """A queue is given some work; or the host does it."""
        with self._lock:
            line.clock.join(self.host.clock)
            count = line.clock[line.number] = line.clock.get(line.number, 0) + 1
            line.now += KERNEL_S
            where = tuple(lines(NEAR))
            for part in reads:
                access, memory = Access(line.number, count, f"{what} reads", where), part.memory
                self._ordered(line, access, part, memory.wrote)
                others = [t for t in memory.reads if t.access.queue != line.number or not t.within(part)]
                memory.reads = [*others, part.touched(access)]
            for part in writes:
                access, memory = Access(line.number, count, f"{what} writes", where), part.memory
                self._ordered(line, access, part, [*memory.wrote, *memory.reads])
                memory.reads = [touch for touch in memory.reads if not touch.within(part)]
                memory.wrote = [*(touch for touch in memory.wrote if not touch.within(part)), part.touched(access)]

    def _ordered(self, line: Line, access: Access, part: Part, before: list[Touch]) -> None:
        for other in before:
            if other.meets(part) and not line.clock.has(other.access):
                self._fault(access.what, access.where, line, other.access)

    def _fault(self, what: str, where: tuple[str, ...], line: Line, other: Access) -> None:
        # Once for every two lines: what is wrong in a layer is wrong in all.
        told = f"memory: {what} at {' < '.join(where) or '?'} on {line}, with no edge behind {self._lines[other.queue]}"
        self._faults.setdefault((what, *where, other.what, *other.where), f"{told}, where {other}")

    def found(self) -> list[str]:
        """What was out of order since this was asked last, in words."""
        with self._lock:
            faults, self._faults = list(self._faults.values()), {}
            return faults

    def follow(self, line: Line, clock: Clock, at: float = 0.0) -> None:
        """What a queue is given from now on comes behind `clock`, and not before `at`."""
        with self._lock:
            line.clock.join(clock)
            line.now = max(line.now, at)

    # -- the host -----------------------------------------------------------------------------------------------------

    def wait(self, kind: str, clock: Clock) -> None:
        """A host thread waits until everything in `clock` is done."""
        with self._lock:
            self.waits.append(Wait(kind, threading.current_thread().name, tuple(lines())))
            self.host.clock.join(clock)

    def seen(self, clock: Clock) -> None:
        """The host has seen, without waiting, that it is done."""
        with self._lock:
            self.host.clock.join(clock)

    def done(self, clock: Clock) -> bool:
        """Whether the host knows that it is."""
        with self._lock:
            return all(self.host.clock.get(queue, 0) >= count for queue, count in clock.items())


LEDGER = Ledger()
"""torch knows a kind of device once per process, so there is one."""
