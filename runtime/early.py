"""Which slots of a bank are copied first for a cut, and which before it is made, so that no pass waits for a copy.

A chunk writes the slots of the oldest one in the window. Right behind a cut it would wait for their copies where they
have changed since the cut before, as they have wherever the ring turns between two cuts. They change no more, though,
since they were finished. So the chunk before the cut has them copied while it runs, which is safe whatever comes: a
slot that is written again after all counts as changed, and a piece that no cut refers to is only room.
"""

from __future__ import annotations

from conf.schema import ModelConfig
from runtime.cut_banks import banks_of
from stages.denoise.bank import Bank
from stages.denoise.history import History, history_of
from stages.denoise.schedule import Schedule


class Rewrites:
    """Which slots chunks write, in a bank and its adapters' banks.

    Args:
        model: its window's rule.
        schedule: says which chunks are committed.
    """

    def __init__(self, model: ModelConfig, schedule: Schedule):
        self.model, self.schedule = model, schedule

    def order(self, bank: Bank, chunk: int) -> dict[tuple[str, int], int]:
        """Slots that are written from `chunk` on, each as (the adapter's name, slot), and its place in the order in
        which that comes."""
        found: dict[tuple[str, int], int] = {}
        for start, own in banks_of(bank):
            history, adapter = history_of(self.model, own.layout), start.removesuffix(".")
            for number in range(chunk, chunk + self._turn(own)):
                for slot in self._written(history, number):
                    found.setdefault((adapter, slot), number - chunk)
        return found

    def behind(self, bank: Bank, chunk: int) -> dict[str, set[int]]:
        """Slots that the chunk behind `chunk` writes and `chunk` does not, by adapter."""
        found = {}
        for start, own in banks_of(bank):
            history = history_of(self.model, own.layout)
            found[start.removesuffix(".")] = self._written(history, chunk + 1) - self._written(history, chunk)
        return found

    def _written(self, history: History, chunk: int) -> set[int]:
        first = history.step(chunk, self.schedule.first_step(chunk), begins=True)
        found = first.slots(history.layout)
        if first.merges:
            found |= set(range(history.layout.reference, history.layout.anchored))
        return found | (history.commit(chunk).slots(history.layout) if self.schedule.commits(chunk) else set())

    def _turn(self, bank: Bank) -> int:
        """Chunks that write all slots that are ever written again."""
        return -(-bank.layout.frames // self.model.chunk_frames) + 1


class Expected:
    """When the next cut of a bank is expected: cuts come at nearly equal distances.

    Args:
        first: the chunk that its stream begins or goes on with.
    """

    def __init__(self, first: int = 0):
        self._last, self._every, self._asked = first, 0, first - 1

    def made(self, chunk: int) -> None:
        """A cut is made before `chunk`."""
        self._last, self._every = chunk, chunk - self._last

    def begins(self, chunk: int) -> bool:
        """A pass of `chunk` is about to run here; returns whether it is its first one, and a cut is expected behind it.

        One that is late is expected for as many chunks again, and then no longer: what was copied for it in vain takes
        the place of copies for others.
        """
        if chunk <= self._asked:
            return False
        self._asked = chunk
        return bool(self._every) and self._every <= chunk + 1 - self._last <= 2 * self._every
