"""What sessions take: of what models may share, as processors, other devices and memories, and of their own plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from runtime.orders import host

CORES = "cores"
"""Of this host; in processors. All other devices are whole ones, named as their memory is."""

Key = tuple[str, str]
"""(kind, name) of what there is a budget of: `rate` (of a plan), `cores`, `devices`, `memory`."""
RATE, DEVICES, MEMORY = "rate", "devices", "memory"


class Memory(NamedTuple):
    """What a worker's streams need, as it told when it had loaded (`runtime.room`).

    Attributes:
        name: of the memory; workers of any model that name the same share it.
        stream_bytes: of each stream.
        pooled: streams that have theirs already.
        free_bytes: for others.
    """

    name: str
    stream_bytes: int
    pooled: int
    free_bytes: int

    @classmethod
    def of(cls, room: Mapping[str, Any]) -> Memory:
        """As `runtime.room.room` tells it.

        Raises:
            KeyError, TypeError, ValueError: that is no room.
        """
        numbers = (int(room[name]) for name in ("stream_bytes", "pooled", "free_bytes"))
        return cls(str(room["memory"]), *numbers)

    @property
    def here(self) -> bool:
        """Whether it is this host's own, and its worker computes on this host's processors."""
        return self.name == host()


@dataclass(frozen=True)
class Needs:
    """What a model's sessions take.

    Attributes:
        rate: sessions that its plan keeps in time.
        shares: of `cores` and of devices, by name, what one session keeps busy.
        memory: of its workers.
        most: streams that its pipeline opens at once; None: any number.
    """

    rate: float
    shares: Mapping[str, float] = field(default_factory=dict)
    memory: Sequence[Memory] = ()
    most: int | None = None

    def at(self, speed: float, memory: Sequence[Memory] | None = None) -> Needs:
        """Likewise, of a plan that is so many times as fast.

        Args:
            memory: of its workers; None: as it was.
        """
        rate, kept = self.rate * speed, self.memory if memory is None else memory
        devices = [name for name in self.shares if name != CORES] if memory is None else devices_of(kept)
        cores = {name: share for name, share in self.shares.items() if name == CORES}
        shares = cores | dict.fromkeys(devices, 1 / rate if rate > 0 else inf)
        return replace(self, rate=rate, shares=shares, memory=kept)

    def taken(self, model: str, sessions: int) -> dict[Key, float]:
        """What so many sessions of the model take."""
        share = 1 / self.rate if self.rate > 0 else inf
        found: dict[Key, float] = {(RATE, model): sessions * share if sessions else 0.0}
        for name, each in self.shares.items():
            if each:
                found[CORES if name == CORES else DEVICES, name] = sessions * each
        return found | {(MEMORY, name): size for name, size in bytes_taken(self.memory, sessions).items()}


def bytes_taken(memory: Sequence[Memory], sessions: int) -> Counter[str]:
    """Bytes that so many sessions need beyond what their workers hold already, by the name of the memory."""
    found: Counter[str] = Counter()
    for one in memory:
        if one.stream_bytes:
            found[one.name] += max(0, sessions - one.pooled) * one.stream_bytes
    return found


def bytes_free(memory: Sequence[Memory]) -> dict[str, int]:
    """Bytes for streams in each memory: what the last of its workers to load found there."""
    found: dict[str, int] = {}
    for one in memory:
        found[one.name] = min(one.free_bytes, found.get(one.name, one.free_bytes))
    return found


def held(memory: Sequence[Memory], most: int) -> int:
    """Sessions that memory holds, `most` at most, while no other model has any."""
    free = bytes_free(memory)
    return whole(most, lambda n: all(size <= free[name] for name, size in bytes_taken(memory, n).items()))


def devices_of(memory: Sequence[Memory]) -> list[str]:
    """Devices that workers compute on beside this host's processors."""
    return [name for name in dict.fromkeys(one.name for one in memory) if name != host()]


def whole(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, where all smaller ones do; 0: none does.

    Args:
        fits: of a number from 1.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
