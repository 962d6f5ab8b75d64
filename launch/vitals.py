"""How the processes of a run are, as their pulses tell it on the board: for whoever holds the pipeline alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from parallel.plan import Plan
from runtime.board import Board
from runtime.pulse import key
from runtime.reasons import Reason
from runtime.roll import Health

NO_PULSE = {"beats": 0, "at": "nothing yet", "at_s": 0.0, "moved_s": 0.0}


class Vitals:
    """Looks at all processes of a plan.

    Args:
        board: of the run.
        plan: whose processes.
        timeout_s: after which one that is not heard of is not alive.
        clock: seconds.
    """

    def __init__(self, board: Board, plan: Plan, timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self._board, self._plan, self._timeout_s, self._clock = board, plan, timeout_s, clock
        self._processes = tuple(range(plan.processes))
        self._heard: dict[int, tuple[int, float]] = {}
        """The last beat of each that differed from the one before, and when it was seen."""

    def follow(self, plan: Plan, processes: tuple[int, ...]) -> None:
        """These processes are the members of this plan from now on."""
        self._plan, self._processes = plan, processes

    def __call__(self) -> list[dict[str, Any]]:
        """The `Health` of every process, as plain values.

        Raises:
            RuntimeError: the board cannot be reached any more.
        """
        failed = self._board.told("failed")
        plan, processes = self._plan, self._processes
        return [asdict(self._of(str(plan.members[i]), process, failed)) for i, process in enumerate(processes)]

    def _of(self, name: str, index: int, failed: dict[str, Any] | None) -> Health:
        now, pulse = self._clock(), self._board.told(key(index)) or NO_PULSE
        beats, heard = self._heard.get(index, (-1, now))
        if pulse["beats"] != beats:
            heard = now
        self._heard[index] = pulse["beats"], heard
        since = now - heard
        lost = None
        if failed is not None and failed["process"] == index:
            lost = Reason.from_dict({name: value for name, value in failed.items() if name != "process"}).line
        left = self._board.told(f"left/{index}") is not None
        return Health(
            name,
            not left and lost is None and since <= self._timeout_s,
            bool(self._board.told(f"loaded/{index}")),
            pulse["at"],
            pulse["at_s"] + since,
            pulse["moved_s"] + since,
            lost,
        )
