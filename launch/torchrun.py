"""Start-up under torchrun: every rank is one worker of the plan.

torchrun --nproc-per-node=5 -m launch.stream launcher=torchrun plan=timestep model=pocket_avatar ...
"""

from __future__ import annotations

import os
import platform
import re
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from rich.console import Console

from conf.errors import UserError
from conf.schema import Config
from launch import control
from launch.log import Log
from launch.progress import Watch
from parallel.builders import build
from parallel.placement import place
from parallel.plan import Plan
from runtime.board import Board, PeerLost
from runtime.orders import Stop
from runtime.pipeline import Pipeline, results
from runtime.process import over_network, run_worker, stop_when
from runtime.workload import describe

RENDEZVOUS_S = 300.0


def meeting_point(timeout_s: float) -> tuple[dist.Store, int, int]:
    """(store, rank, world size) of this torchrun. Waits for whoever holds the store, and for nobody else.

    Raises:
        UserError: this process was not started by torchrun, or the store cannot be held or reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            "launcher=torchrun",
            "this process was not started by torchrun",
            "start it with torchrun --nproc-per-node=N -m launch.stream launcher=torchrun ...",
        )
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # The torchrun of the first host may hold it already.
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = rank == 0 and not held
    try:
        store: dist.Store = dist.TCPStore(
            host, port, is_master=holds, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
    except RuntimeError as error:
        rule = "this port cannot be opened here" if holds else f"nobody answers there within {timeout_s:g} s"
        raise UserError(
            f"MASTER_ADDR={host} MASTER_PORT={port}",
            f"{rule} ({str(error).splitlines()[0][:160]})",
            "use a port that is free on the first host and open to the others",
        ) from error
    store.set_timeout(timedelta(seconds=RENDEZVOUS_S))
    if held:
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return store, rank, int(os.environ["WORLD_SIZE"])


@cache
def rendezvous() -> tuple[dist.Store, int, int]:
    """The meeting point, found once; raises as `meeting_point` does."""
    return meeting_point(RENDEZVOUS_S)


def nodes_of(store: dist.Store, rank: int, world: int) -> list[tuple[int, str]]:
    """The machine of every rank: numbered by the torchruns that started them, and its name. Waits for all ranks."""
    store.set(f"node/{rank}", f"{os.environ.get('GROUP_RANK', 0)} {platform.node()}")
    told = [store.get(f"node/{other}").decode().split(" ", 1) for other in range(world)]
    return [(int(number), name) for number, name in told]


def with_host(line: str, plan: Plan, hosts: Sequence[str]) -> str:
    """A line about a worker with the name of its host, where there are several.

    Args:
        hosts: of every process.
    """

    def named(found: re.Match) -> str:
        members = [i for i, member in enumerate(plan.members) if str(member) == found[1]]
        return f"{found[0]} on {hosts[members[0]]}" if members else found[0]

    return re.sub(r"worker (\d+(?:\.\d+)?)", named, line, count=1) if len(set(hosts)) > 1 else line


def speaks() -> bool:
    """Whether this process prints what all would print: the first of a torchrun, or any other process."""
    return os.environ.get("RANK", "0") == "0"


def agree(config: DictConfig) -> None:
    """Give all ranks rank 0's output folder: its default holds the time of day."""
    if config.launcher.name != "torchrun":
        return
    store, rank, _ = rendezvous()
    if rank == 0:
        store.set("output_dir", config.output_dir)
    config.output_dir = store.get("output_dir").decode()


def device(config: Config) -> torch.device | None:
    """This rank's GPU, where there are GPUs."""
    if not (config.device.may_be_gpu and torch.cuda.is_available()):
        return None
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def sized(config: Config) -> Config:
    """The configuration, its plan of as many workers as torchrun started processes."""
    _, _, workers = rendezvous()
    if config.plan.workers not in (None, workers):
        raise UserError(
            f"plan.workers={config.plan.workers}",
            f"torchrun started {workers} processes",
            f"use plan.workers={workers}, or --nproc-per-node={config.plan.workers}",
        )
    return replace(config, plan=replace(config.plan, workers=workers))


def stream(
    config: Config, begin, console: Console, stop: threading.Event, log: Log
) -> tuple[list[dict], list[dict]] | None:
    """Run this rank's worker.

    Args:
        config: the run.
        begin: makes the output folder; called on one rank, once all have loaded.
        console, stop, log: as everywhere.

    Returns:
        On rank 0 every worker's and every stream's part of the report; None elsewhere.
    """
    store, rank, world = rendezvous()
    plan, first = build(config.plan, describe(config)), rank == 0
    nodes = nodes_of(store, rank, world)
    # A plan for unequal devices says which of them each process is for; rank i is device i.
    ranks = list(config.plan.devices or place(plan, [number for number, _ in nodes]))
    index = ranks.index(rank)
    board = Board(store, index, world)
    stop_when(stop, lambda: board.order(Stop()))
    if first:
        pipeline = Pipeline(board, plan, config)
        try:
            control.begin(pipeline, config)
        except UserError as error:
            board.tell("failed", str(error))
            raise
    board.tell(f"ordered/{rank}")
    board.wait("ordered/0", RENDEZVOUS_S)
    with Watch(pipeline, config, console, log) if first else nullcontext():
        try:
            result = run_worker(
                plan, index, config, board, Path(config.output_dir), over_network(plan, index, config, store),
                device(config), begin=begin if first else None,
            )  # fmt: skip
        except PeerLost as lost:
            raise PeerLost(with_host(str(lost), plan, [nodes[r][1] for r in ranks])) from lost
    board.tell(f"result/{index}", result | {"node": nodes[rank][0]})
    board.meet("finished", config.launcher.timeout_s)
    if not first:
        return None
    workers: list[dict[str, Any]] = [board.told(f"result/{i}") for i in range(world)]
    pipeline.leave()
    return workers, results(pipeline)
