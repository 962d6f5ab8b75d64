"""A worker in a process of its own, for `launch.local`: `python -m launch.worker`.

What it is to do comes as one line of JSON on standard input. That stays open as long as whoever started it lives: at
its end this process ends, too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import devices
from conf.schema import Config
from conf.typed import typed
from launch.places import on_one_host
from launch.signals import SIGNALS
from parallel.builders import build
from parallel.plan import Plan
from runtime.board import Abandoned, Board
from runtime.heap import few_arenas
from runtime.process import over_network, run_worker
from runtime.workload import describe


def main() -> int:
    """Be one worker; returns the exit code. What fails is told on the board, and printed by whoever started this."""
    few_arenas()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are for whoever started this
    given = json.loads(_line(sys.stdin.fileno()))
    threading.Thread(target=_end_with_parent, args=(sys.stdin.fileno(),), name="parent", daemon=True).start()
    config = typed(Config, given["config"], "config")
    plan, index = build(config.plan, describe(config)), given["index"]
    patience = timedelta(seconds=config.launcher.timeout_s)
    store = dist.TCPStore(*given["store"], is_master=False, timeout=patience)
    # Its own standard input is not for sources: they read that of whoever started this, if there is one.
    sys.stdin = None
    live = None if given["live"] is None else os.fdopen(given["live"], "rb")
    connect = over_network(plan, index, config, store)
    board = Board(store, index, plan.processes)
    try:
        run_worker(plan, index, config, board, Path(config.output_dir), connect, _device(plan, config, index), live)
    except Abandoned:
        return 1
    except Exception:
        return 1  # told on the board, with its traceback
    return 0


def _device(plan: Plan, config: Config, index: int) -> torch.device | None:
    """This worker's GPU, where there are GPUs; all processes of the run find the same."""
    if not (config.device.may_be_gpu and (count := devices.count())):
        return None
    device = devices.choose("cuda", on_one_host(plan, config.plan.devices, count)[index])
    devices.of(device).use()
    return device


def _line(descriptor: int) -> bytes:
    """A line, and not a byte more: a buffer would be locked by whoever waits for what follows."""
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        return file.readline()


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 64):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
