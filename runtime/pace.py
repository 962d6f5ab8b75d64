"""The clock of a stream that is driven live: it is sampled no faster than it is watched."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

DRIFT = 1e-3
"""How much faster than this clock that of a sound card may be: what comes faster would be held back more and more."""
BEGIN, BEGINS = 8, 2
"""Chunks after which all that they had to spare is waited out, and how often that is done: while everything is cold,
more is spared than ever again, and what was seen then says nothing of later."""
LATELY, ONE_OF = 200, 100
"""Chunks whose ways are watched after that, and of how many one may be late: the longest way but one of all these is
the one that the next is allowed, and the longest, as long as they are fewer."""
LEAST, MOST = 0.01, 0.02
"""Seconds by which a chunk is put off, at least: less would not be noticed. And at most, once the beginning is over:
what is seldom needed is given away slowly."""
NUMBERS = ("waited_s", "_due", "_later", "_put_off", "_shown_later", "_told", "_shown_until", "_sampled_until")
"""What another clock on this host must know to go on as this one."""


class Pace:
    """When the next chunk of one stream is due: as long after the one before as that one is watched.

    What is late by less than a chunk catches up. What is late by more stays late: who drives would otherwise see the
    stream run through the time that was lost, with what is pressed now.

    Args:
        wait: waits so many seconds, or fewer where the stream is stopped meanwhile.
        clock: seconds, monotonic; the one by which moments travel.

    Attributes:
        waited_s: by how much chunks were put off so far, in all, since they had it to spare.
    """

    def __init__(self, wait: Callable[[float], object], clock: Callable[[], float] = time.perf_counter):
        self._wait, self._clock = wait, clock
        self.waited_s = 0.0
        self._due: float | None = None
        self._lock = threading.Lock()
        self._later = 0.0
        """By how much the next chunk is to be put off."""
        self._put_off = 0.0
        """By how much chunks have been put off so far, where nothing was lost by it."""
        self._shown_later = 0.0
        """By how much what is seen has been put off so far, since chunks were late."""
        self._under_way: deque[tuple[float, float]] = deque(maxlen=LATELY)
        """Of each chunk that was sampled and is not shown yet, by how much it had been put off, and its seconds."""
        self._shown_until: float | None = None
        """When the chunk that is shown now will have been watched; None: none was shown."""
        self._sampled_until: float | None = None
        """When the chunk that was sampled last would have been watched, had it been shown at once; None: none was."""
        self._told = 0
        self._slacks: deque[float] = deque(maxlen=LATELY)
        """What each chunk would have had to spare, had nothing ever been put off: the longer its way, the less."""
        self._ahead: float | None = None
        """After a turn, by how much more what was sampled had been put off than what was seen, before it."""
        self._unusual = 0
        """Chunks whose ways say nothing, since they were under way at a turn."""

    def slack(self, seconds: float, late_s: float = 0.0) -> None:
        """A chunk is shown from now on; it was there so many seconds before, below 0: it is late. From any thread.

        What all but the rarest chunks had to spare is waited out before the next is sampled: so it enters as late as
        the longest way of these allows, and shows what was heard and pressed until then.

        Args:
            late_s: by how much all that follows is shown later, since this one came too late.
        """
        with self._lock:
            put_off, watched_s = self._under_way.popleft() if self._under_way else (self._put_off, 0.0)
            self._shown_until = self._clock() + watched_s
            self._told += 1
            if self._unusual:
                self._unusual -= 1
                self._shown_later += late_s
                self._catch_up()
                return
            if self._told > 1:  # the first finds everything cold, and the clock begins with it
                self._slacks.append(seconds + put_off - self._shown_later)
            self._shown_later += late_s
            self._give()

    def _catch_up(self) -> None:
        """What is seen stood still for a while: what is sampled is put off as much, or it would be seen later than
        before, for good."""
        behind = self._ahead - (self._put_off + self._later - self._shown_later)
        if behind > LEAST:
            self._later += behind

    def _give(self) -> None:
        began, rest = divmod(self._told - 1, BEGIN)
        begins = began < BEGINS or (began == BEGINS and not rest)
        if not self._slacks or (begins and rest):
            return
        spare = self._allowed() - self._put_off - self._later + self._shown_later
        if spare > LEAST:
            self._later += spare if begins else min(spare, MOST)
        if begins and began < BEGINS:
            self._slacks.clear()

    def _allowed(self) -> float:
        return sorted(self._slacks)[max(1, len(self._slacks) // ONE_OF) - 1]

    # -- from one generation of a run to the next ----------------------------------------------------------------------

    def wire(self, wait: Callable[[float], object]) -> None:
        """Wait in another way from now on."""
        self._wait = wait

    def turn(self) -> None:
        """The run goes on in another generation: chunks that were under way come late, and so may the next one."""
        with self._lock:
            self._ahead = self._put_off + self._later - self._shown_later
            self._unusual = len(self._under_way) + 1

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from, on this host."""
        with self._lock:
            numbers = {name: getattr(self, name) for name in NUMBERS}
            return numbers | {
                "way": self._allowed() if self._slacks else None,
                "under_way": [s for _, s in self._under_way],
            }

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on from the progress of another. Of the ways it had watched, the one that counted stays."""
        with self._lock:
            for name in NUMBERS:
                setattr(self, name, progress[name])
            self._slacks.extend([] if progress["way"] is None else [progress["way"]])
            self._under_way.extend((self._put_off, seconds) for seconds in progress["under_way"])

    # -- the clock -----------------------------------------------------------------------------------------------------

    def hold(self) -> bool:
        """Wait until the next chunk is due; returns whether it had to be waited for."""
        with self._lock:
            if self._due is not None:
                self._due += self._later
                self._put_off += self._later
                self.waited_s += self._later
            self._later = 0.0
        early = 0.0 if self._due is None else self._due - self._clock()
        if early > 0:
            self._wait(early)
        return early > 0

    def sampled(self, seconds: float) -> None:
        """A chunk was sampled that is watched for so many seconds. With the first one the clock begins."""
        now = self._clock()
        with self._lock:
            self._sampled_until = now + seconds
            self._under_way.append((self._put_off, seconds))
            due = (now if self._due is None else self._due) + seconds * (1 - DRIFT)
            self._due = max(now, due)
            self._put_off += self._due - due - seconds * DRIFT

    @property
    def shown(self) -> float | None:
        """When the chunk that was sampled last will be shown, if it is there; None: none was sampled.

        As long as nothing is shown nobody sees it late: it may take as long as it is watched, and not for ever.
        """
        with self._lock:
            if self._shown_until is None:
                return self._sampled_until
            return self._shown_until + sum(seconds for _, seconds in list(self._under_way)[:-1])
