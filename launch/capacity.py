"""How many viewers a cluster can serve: copies of a plan side by side, filled with live streams in the simulator.

everframe plan model=... cluster=h100x64 capacity=0.999
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from conf.errors import UserError
from conf.schema import Config
from launch import planning, ranking
from parallel.capacity import Service, most_streams
from parallel.cluster import Cluster
from parallel.cost import Costs
from parallel.durations import PlanDurations
from parallel.memory import Memory
from parallel.planner import Choice, rank

SIZES = (1, 2, 3, 4, 5, 6, 8)
"""Devices that one copy of a plan may take."""


class Row(NamedTuple):
    """What one size of copy comes to.

    Attributes:
        devices: of a copy.
        copies: on the cluster.
        choice: its plan; None: nothing fits so few devices.
        streams: per copy.
        held: how many its memory holds.
    """

    devices: int
    copies: int
    choice: Choice | None
    streams: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        return self.copies * min(self.streams, self.held)


def rows(config: Config) -> Iterator[Row]:
    """Every size of copy, the best plan for its rate, and how many streams that serves on time.

    Streams are live: a chunk's sound or actions come as time passes, and its frames are due when those before them
    end. A viewer starts one chunk's play later than the first frame is there, which is what `buffer_s` allows for.
    """
    workload, cluster, demand = planning.planned(config), planning.cluster_of(config), planning.demand(config)
    play = demand.frames / demand.fps
    service = Service(play_s=play, buffer_s=play, on_time=config.capacity)
    for size in (s for s in SIZES if s <= len(cluster.devices)):
        part, copies = replace(cluster, devices=cluster.devices[:size]), len(cluster.devices) // size
        try:
            # Filled with streams a copy is never short of chunks, so its rate is what counts.
            wanted = replace(config.plan, name="auto", workers=size, devices=None, force=True)
            choice = rank(workload, part, demand, "fps", wanted)[0]
        except UserError:
            yield Row(size, copies, None)
            continue
        costs = Costs(choice.plan, part, choice.placement)
        held = _held(costs)
        limit = min(held, math.ceil(play / choice.prediction.period_s))
        most = most_streams(choice.plan, lambda costs=costs: PlanDurations(costs), service, max(1, limit))
        yield Row(size, copies, choice, most, held)


def _held(costs: Costs) -> int:
    """Streams whose banks and decoder states fit beside the weights."""
    left = []
    for worker in range(costs.plan.workers):
        one, two = (Memory(costs, streams).of(worker).total for streams in (1, 2))
        room = Memory(costs).usable(worker) - one
        left.append(1 + math.floor(room / (two - one)) if two > one else math.inf)
    return int(min(min(left), 4096))


def show(config: Config, console: Console) -> None:
    """Print what every size of copy serves, the best one last.

    Raises:
        UserError: no plan serves even one stream.
    """
    cluster: Cluster = planning.cluster_of(config)
    found = list(rows(config))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("devices a copy", "copies", "plan", "streams a copy", "memory holds", "streams in all"):
        table.add_column(column, justify="left" if column == "plan" else "right", no_wrap=column != "plan")
    for row in found:
        plan = ranking.spread(row.choice) if row.choice else "does not fit"
        table.add_row(*map(str, (row.devices, row.copies, plan, row.streams, row.held, row.total)))
    console.print(
        f"cluster={cluster.name}: {len(cluster.devices)} devices; live streams with {config.capacity:.1%} of frames on "
        f"time, by simulation:\n"
    )
    console.print(table)
    best = max(found, key=lambda row: row.total)
    if not best.total:
        raise UserError(f"capacity={config.capacity}", "no plan here serves one stream in time", "use faster devices")
    console.print(
        f"\n{best.total} streams: {best.copies} copies of {ranking.overrides(best.choice)}, "
        f"{min(best.streams, best.held)} streams each."
    )
