"""Start-up under torchrun: every rank is one worker of the plan.

torchrun --nproc-per-node=5 -m launch.stream launcher=torchrun plan=timestep model=pocket_avatar ...
"""

from __future__ import annotations

import os
import threading
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
from runtime.board import Board
from runtime.pipeline import Pipeline, results
from runtime.process import over_network, run_worker, stop_when
from runtime.trace import join_traces
from runtime.workload import describe

RENDEZVOUS_S = 300.0


@cache
def rendezvous() -> tuple[dist.Store, int, int]:
    """(store, rank, world size) of this torchrun, read once.

    Raises:
        UserError: this process was not started by torchrun.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            "launcher=torchrun",
            "this process was not started by torchrun",
            "start it with torchrun --nproc-per-node=N -m launch.stream launcher=torchrun ...",
        )
    return next(dist.rendezvous("env://", timeout=timedelta(seconds=RENDEZVOUS_S)))


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


def _device(config: Config) -> torch.device | None:
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
    plan, devices = build(config.plan, describe(config)), config.plan.devices
    first = rank == 0
    # A plan for unequal devices says which of them each process is for.
    index = devices.index(rank) if devices else rank
    board = Board(store, index, world)
    pipeline = Pipeline(board, plan.workers)
    stop_when(stop, pipeline.stop)
    if first:
        try:
            control.begin(pipeline, config)
        except UserError as error:
            board.tell("failed", str(error))
            raise
    board.tell(f"ordered/{rank}")
    board.wait("ordered/0", RENDEZVOUS_S)
    with Watch(pipeline, config, console, log) if first else nullcontext():
        result = run_worker(
            plan, index, config, board, Path(config.output_dir), over_network(plan, index, config, store),
            _device(config), begin=begin if first else None,
        )  # fmt: skip
    board.tell(f"result/{index}", result)
    board.meet("finished", config.launcher.timeout_s)
    if not first:
        return None
    workers: list[dict[str, Any]] = [board.told(f"result/{i}") for i in range(world)]
    join_traces(Path(config.output_dir), world)
    return workers, results(pipeline)
