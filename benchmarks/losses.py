"""Ways to lose the workers of a run: which process, how, and at which moment.

An exception is raised where the process is just then, by a signal (`benchmarks.fault_signal`).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fault_signal import RAISE
from runtime.generations import role
from runtime.pulse import key
from runtime.running import Running

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": RAISE}
LOOK_S = 0.002


class Loss(NamedTuple):
    """One loss.

    Attributes:
        how: `kill`, `stop`, `raise`, or `node`: all processes of one node of a Ray cluster.
        who: a role (`ROLES`), or `two` processes at once.
        at: the moment: any `chunk`, while a state is being written (`save`), while the process that takes a lost one's
            place is `loading`, while another plan is being prepared (`prepare`), or between two generations (`change`).
    """

    how: str
    who: str
    at: str = "chunk"

    @staticmethod
    def of(text: str) -> Loss:
        """From words: `kill output`, `raise any, save`."""
        what, _, at = text.partition(", ")
        return Loss(*what.split(), at or "chunk")

    def __str__(self) -> str:
        return f"{self.how} {self.who}, {self.at}"


def _plain(held: dict[str, Any]) -> bool:
    """Whether a member has steps and nothing else."""
    return not (held["rank"] or held["encode"] or held["decode"] or held["output"])


ROLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "encode": lambda held: held["encode"],
    "decode": lambda held: held["decode"],
    "output": lambda held: held["output"],
    "step": _plain,
    "follower": lambda held: held["rank"],
    "any": lambda held: True,
}


def pid(run: Running, process: int) -> int | None:
    """Of a process that has told of itself; None: it has not."""
    told = run.board.told(key(process))
    return int(told["process"].split("/")[1]) if told else None


def chosen(run: Running, who: str, draw: random.Random) -> list[int]:
    """Numbers of the processes that a loss hits, of those that are there."""
    generation, plan = run.generation, run.plan
    there = [i for i, process in enumerate(generation.processes) if process in run.left]
    if who == "two" and len(there) > 1:
        return [generation.processes[i] for i in sorted(draw.sample(there, 2))]
    fits = [i for i in there if ROLES.get(who, ROLES["any"])(role(plan, i))] or there
    return [generation.processes[draw.choice(fits)]] if fits else []


def send(run: Running, processes: list[int], how: str) -> list[int]:
    """Do it to them; returns those who were there."""
    found = []
    for process in processes:
        if (number := pid(run, process)) is not None:
            with suppress(ProcessLookupError):
                os.kill(number, SIGNALS[how])
                found.append(process)
    return found


def until(test: Callable[[], Any], over: Callable[[], Any], seconds: float, every_s: float = LOOK_S) -> Any:
    """Wait until `test` holds; returns what it gives, or nothing where `over` holds first or time is up."""
    end = time.monotonic() + seconds
    while not (found := test()):
        if over() or time.monotonic() > end:
            return None
        time.sleep(every_s)
    return found


def starting(run: Running, known: set[int]) -> int | None:
    """A process that was not there before, has begun, and has not loaded yet."""
    for process in sorted(run.left - known):
        if pid(run, process) is not None and not run.told(f"loaded/{process}"):
            return process
    return None


def states_being_made(run: Running) -> list[Path]:
    """Folders of states that are being written."""
    folders = {order.keep.folder for order in run.pipeline.streams if order.keep and order.keep.folder}
    return [path for folder in folders for path in Path(folder).glob("chunk.*.part")]
