"""A worker in a process of its own, for `launch.local`: `python -m launch.worker`.

What it is to do comes as one line of JSON on standard input. That stays open as long as whoever started it lives: at
its end this process ends, too. Linux ends it even where it is stopped.
"""

from __future__ import annotations

import ctypes
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
from launch.signals import SIGNALS
from runtime.board import Abandoned, Board
from runtime.generations import Generation
from runtime.heap import few_arenas
from runtime.network import over_network
from runtime.process import run_worker


def main() -> int:
    """Be one worker; returns the exit code. What fails is told on the board, and printed by whoever started this."""
    few_arenas()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are for whoever started this
    given = json.loads(_line(sys.stdin.fileno()))
    _die_with(given["parent"])
    threading.Thread(target=_end_with_parent, args=(sys.stdin.fileno(),), name="parent", daemon=True).start()
    config, process = typed(Config, given["config"], "config"), given["process"]
    generation = Generation.parsed(given["generation"])
    patience = timedelta(seconds=config.launcher.timeout_s)
    store = dist.TCPStore(*given["store"], is_master=False, timeout=patience)
    # Its own standard input is not for sources: they read that of whoever started this, if there is one.
    sys.stdin = None
    live = None if given["live"] is None else os.fdopen(given["live"], "rb")
    board, network = Board(store, process, given["processes"]), over_network(config, store)
    try:
        run_worker(generation, process, config, board, Path(config.output_dir), network, _device(given["card"]), live)
    except Abandoned:
        return 1
    except Exception:
        return 1  # told on the board, with its traceback
    return 0


def _device(card: int | None) -> torch.device | None:
    """This process's GPU, if it has one."""
    if card is None:
        return None
    device = devices.choose("cuda", card)
    devices.of(device).use()
    return device


def _line(descriptor: int) -> bytes:
    """A line, and not a byte more: a buffer would be locked by whoever waits for what follows."""
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        return file.readline()


PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the thread that started it ends."""


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone: one that is stopped cannot read its standard input."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 64):
        pass
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Threads may wait for a peer that died: they are in C++, and would abort an interpreter that ends under them.
    os._exit(code)
