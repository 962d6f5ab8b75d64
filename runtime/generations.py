"""Generations of a run: a number, a plan, and which process is which of its members.

A run begins with generation 0. When a process is lost, or another plan is wanted, the driver ends the running
generation and tells the next (`runtime.supervisor`). Every process of it makes anew all but what it holds
(`runtime.parts`), with channels of that generation's own, so that nothing of an earlier one can reach it; and every
stream is opened again from its newest cut. States know no plan, so that may be any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from conf.schema import Config, PlanConfig
from conf.typed import typed
from parallel.builders import build
from parallel.plan import Plan
from runtime.board import Board
from runtime.workload import describe


class Superseded(Exception):  # noqa: N818  an event, not an error
    """The generation is over: what is under way is thrown away."""


@dataclass(frozen=True)
class Generation:
    """One generation.

    Attributes:
        number: from 0.
        plan: settings of its plan, as plain values.
        processes: the number of the process that is each member of the plan. Processes are numbered as they are
            started, and keep their numbers.
    """

    number: int
    plan: dict[str, Any]
    processes: tuple[int, ...]

    @staticmethod
    def first(config: Config, plan: Plan) -> Generation:
        """With which a run begins."""
        return Generation(0, asdict(config.plan), tuple(range(plan.processes)))

    def of(self, config: Config) -> tuple[Config, Plan]:
        """A run's configuration with this plan, and the plan."""
        config = replace(config, plan=typed(PlanConfig, self.plan, "plan"))
        return config, build(config.plan, describe(config))

    def index(self, process: int) -> int | None:
        """Which member of the plan a process is; None: none."""
        return self.processes.index(process) if process in self.processes else None

    def tell(self, board: Board) -> None:
        """Let every process know."""
        board.tell(f"generation/{self.number}", asdict(self))
        board.tell("generation", self.number)

    @staticmethod
    def parsed(told: dict[str, Any]) -> Generation:
        """From plain values."""
        return Generation(told["number"], told["plan"], tuple(told["processes"]))

    @staticmethod
    def told(board: Board, after: int) -> Generation | None:
        """The newest that was told, if its number is above `after`."""
        number = board.told("generation")
        if number is None or number <= after:
            return None
        told = board.told(f"generation/{number}")
        return None if told is None else Generation.parsed(told)


def role(plan: Plan, index: int) -> dict[str, Any]:
    """What decides which of two processes has more of what a member of a plan needs: its parts, in plain values."""
    member = plan.members[index]
    worker = member.worker
    layers = {layer for block in plan.blocks_of(worker) for layer in plan.blocks[block]}
    last = plan.stages[-1].worker if plan.stages else None
    return {
        "rank": member.rank,
        "layers": layers,
        "encode": member.leads and worker == plan.encode,
        "output": member.leads and worker == last,
        "decode": member.leads and worker == plan.decode,
        "steps": {step for block in plan.blocks_of(worker) for step in plan.steps_of(worker, block)},
    }


def likeness(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[int, ...]:
    """How much of what `a` holds `b` needs, too; more is more. Ends of streams outside come first: who has them keeps
    connections and open files."""
    both = [int(a[name] and b[name]) for name in ("output", "encode", "decode")]
    return (2 * both[0] + both[1], both[2], len(a["layers"] & b["layers"]), len(a["steps"] & b["steps"]))


def seated(
    plan: Plan, before: Plan, processes: Sequence[int], alive: Iterable[int], spares: Iterable[int]
) -> list[int | None]:
    """Who is each member of a plan; None: somebody who is still to be started.

    Args:
        plan: the next.
        before, processes: the plan that ran, and who was which of its members.
        alive: of all processes.
        spares: those that can be any member.
    """
    alive, found = set(alive), [None] * plan.processes
    had = {p: role(before, i) for i, p in enumerate(processes) if p in alive}
    if plan == before:
        found = [p if p in alive else None for p in processes]
    else:
        needs = {i: role(plan, i) for i in range(plan.processes)}
        pairs = sorted(
            ((likeness(had[p], needs[i]), -i, -p) for p in had for i in needs),
            reverse=True,
        )
        for _, i, p in pairs:
            if found[-i] is None and -p in had:
                found[-i] = -p
                del had[-p]
    left = iter(sorted(p for p in spares if p in alive and p not in found))
    return [next(left, None) if p is None else p for p in found]
