"""Who is there of a run's processes, as the board tells: who has left and how, and how those are that have not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from runtime.board import Board
from runtime.pulse import PULSE_S, key


@dataclass(frozen=True)
class Health:
    """How one process of a plan is.

    Attributes:
        worker: its name in the plan.
        alive: it is there, and was heard of within `launcher.timeout_s`.
        loaded: it holds its weights.
        at: what it was at when it was heard of last, in words.
        at_s: seconds since it came to that.
        moved_s: seconds since something came in or was done there, as far as has been heard.
        lost: why it is lost; None: it is not.
        stages: passes and their seconds since it began, by stage.
    """

    worker: str
    alive: bool
    loaded: bool
    at: str
    at_s: float
    moved_s: float
    lost: str | None = None
    stages: dict[str, list[float]] = field(default_factory=dict)


class Roll:
    """A run's processes, called again and again.

    Args:
        board: theirs.
        processes: how many there are at first.

    Attributes:
        left: those that have not left.
        reports: of those that have left in good order.
        lost: how the others were lost, in a line.
    """

    def __init__(self, board: Board, processes: int):
        self._board = board
        self.left = set(range(processes))
        self.reports: dict[int, dict[str, Any]] = {}
        self.lost: dict[int, str] = {}
        self._gone_since: dict[int, float] = {}
        self._heard: dict[int, tuple[int, float]] = {}
        self._felt = -inf

    def again(self, process: int) -> None:
        """A process is started anew under its number: nothing that it has told counts any more."""
        for told in (key(process), f"loaded/{process}"):
            self._board.forget(told)
        for known in (self._gone_since, self.lost, self._heard):
            known.pop(process, None)

    def feel(self) -> None:
        """Hear whose pulse goes on, as often as they beat."""
        if time.monotonic() - self._felt > PULSE_S:
            self._felt = time.monotonic()
            for process in self.left:
                self._pulse(process)

    def departed(
        self, gone: Callable[[int], str | None], settle_s: float, name: Callable[[int], str]
    ) -> Iterator[tuple[int, str, bool]]:
        """Take note of who has left since this was asked last.

        Args:
            gone: how a process ended; None: as far as is known it has not.
            settle_s: how long after a process has gone its report may still come, on another connection.
            name: of a process.

        Yields:
            (process, how that is said, whether it has told of its end itself) of everyone who is lost.
        """
        for process in sorted(self.left):
            how, report = gone(process), self._board.told(f"left/{process}")
            if report is None and (how is None or not self._settled(process, settle_s)):
                continue
            self.left.discard(process)
            if report:
                self.reports[process] = report
                continue
            raised = self._board.told(f"raised/{process}")
            if report is False and raised is None and self._board.told("failed"):
                continue  # what failed is told there
            line = f"{name(process)} is lost ({raised['line'] if raised else how or 'its process was ended'})"
            self.lost[process] = line
            yield process, line, report is not None

    def _settled(self, process: int, settle_s: float) -> bool:
        """Whether a process has been gone for long enough."""
        now = time.monotonic()
        return now - self._gone_since.setdefault(process, now) >= settle_s

    def _pulse(self, process: int) -> tuple[dict[str, Any], float]:
        """What a process has told of itself last, and how many seconds ago that was heard."""
        now = time.monotonic()
        pulse = self._board.told(key(process)) or {"beats": 0, "at": "nothing yet", "at_s": 0.0, "moved_s": 0.0}
        beats, heard = self._heard.get(process, (-1, now))
        if pulse["beats"] != beats:
            heard = now
        self._heard[process] = pulse["beats"], heard
        return pulse, now - heard

    def silent_s(self, process: int) -> float:
        """Seconds since a process was heard of last."""
        return self._pulse(process)[1]

    def health(self, worker: str, process: int, timeout_s: float) -> Health:
        """How a process is.

        Args:
            worker: its name in the plan.
            timeout_s: after which one that says nothing is not alive.
        """
        pulse, since = self._pulse(process)
        alive = process in self.left and since <= timeout_s
        loaded = bool(self._board.told(f"loaded/{process}"))
        at_s, moved_s = pulse["at_s"] + since, pulse["moved_s"] + since
        return Health(
            worker, alive, loaded, pulse["at"], at_s, moved_s, self.lost.get(process), pulse.get("stages", {})
        )

    def number(self, process: int) -> int | None:
        """The number that its machine has for a process; None: nothing was heard of it yet."""
        told = self._board.told(key(process))
        return told and int(told["process"].split("/")[1])
