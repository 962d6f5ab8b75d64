"""One worker as a process: load, meet the others, run, and say how it went. The same under torchrun and Ray.

Workers share a key-value store for what happens once: having loaded, having failed, the wish to stop, progress,
results. Everything that happens per chunk goes over channels.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from conf.errors import UserError
from conf.schema import Config
from parallel.channels import ChannelError
from parallel.p2p import connect_all
from parallel.plan import Plan
from runtime.local import credits
from runtime.parts import load_parts, open_outputs
from runtime.report import Timeline
from runtime.trace import worker_trace
from runtime.worker import PeerLost, Worker

POLL_S = 0.2
LOAD_TIMEOUT_S = 3600.0
"""Longest wait for the others to load: a cold disk may need minutes for a 14B model."""


class Abandoned(Exception):  # noqa: N818  an event, not an error of this worker
    """Another worker failed, or was the first to see a failure, and says so itself."""


class Board:
    """What workers tell each other once, on a shared store.

    Args:
        store: a TCPStore or the like, shared by all workers.
        index, workers: of the plan.
    """

    def __init__(self, store: dist.Store, index: int, workers: int):
        self.store, self.index, self.workers = store, index, workers

    def tell(self, key: str, value: Any = True) -> None:
        self.store.set(key, json.dumps(value))

    def told(self, key: str) -> Any:
        """What was told under a key; None if nothing was."""
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def first(self, key: str, value: Any) -> Any:
        """Tell unless another did before; returns what the first told."""
        return json.loads(self.store.compare_set(key, "", json.dumps(value)))

    def wait(self, key: str, timeout_s: float) -> None:
        """Wait until something is told under `key`.

        Raises:
            Abandoned: a worker failed meanwhile.
            PeerLost: nothing came in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            with suppress(dist.DistStoreError):
                self.store.wait([key], timedelta(seconds=POLL_S))
                return
            if self.told("failed") is not None:
                raise Abandoned(self.told("failed"))
            if time.monotonic() > end:
                raise PeerLost(f"nothing was heard of {key} for {timeout_s:.0f} s")

    def meet(self, point: str, timeout_s: float) -> None:
        """Wait until every worker is at `point`; raises as `wait` does."""
        self.tell(f"{point}/{self.index}")
        for other in range(self.workers):
            self.wait(f"{point}/{other}", timeout_s)


@contextmanager
def _stopping(board: Board, stop: threading.Event) -> Iterator[None]:
    """Set `stop` here when anyone has told the board to, or when there is no board any more."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            try:
                wanted = board.told("stop")
            except RuntimeError:
                wanted = True  # the launcher is gone, and nobody waits for this stream any more
            if wanted:
                stop.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run_worker(
    plan: Plan,
    index: int,
    config: Config,
    store: dist.Store,
    folder: Path,
    stop: threading.Event,
    device: torch.device | None = None,
    stdin: BinaryIO | None = None,
    begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Be worker `index` of a plan until every stream has ended.

    Args:
        plan, index, config: the run, and who this is.
        store: shared by all workers.
        folder: for results.
        stop: ends the streams when set on the encode worker (the board's `stop` sets it, too).
        device: None: as the configuration says.
        stdin: where live sources read; None: standard input.
        begin: makes the output folder; called once all workers have loaded, and given to one process of the run, which
            may be this one or the launcher's.

    Returns:
        This worker's part of the report.

    Raises:
        UserError: what this worker was to load or open cannot be used.
        PeerLost: a worker was lost, and this one is the first to see it.
        Abandoned: another worker failed or saw a failure first, and says so itself.
    """
    board = Board(store, index, plan.workers)
    patience = config.launcher.timeout_s
    try:
        parts = load_parts(plan, index, config, stop, device, stdin, lambda what: board.tell(f"loading/{index}", what))
        board.meet("loaded", LOAD_TIMEOUT_S)
        if begin is not None:
            begin()
            board.tell("begun")
        board.wait("begun", LOAD_TIMEOUT_S)
        if index == plan.decode:
            parts.outputs = open_outputs(config, config.model.network.audio is not None)
    except UserError as error:
        board.tell("failed", str(error))
        raise
    inbox: queue.Queue = queue.Queue()
    trace = worker_trace(folder, index)

    def notify(stream: int, timeline: Timeline) -> None:
        board.tell(f"progress/{stream}", timeline.progress()._asdict())

    senders, receivers = {}, []
    try:
        peers = {f"{a:04d}-{b:04d}": (b if a == index else a) for a, b in plan.channels if index in (a, b)}
        for name, link in connect_all(store, index, peers, parts.device, patience).items():
            if int(name[:4]) == index:
                senders[link.peer] = link.sender(inbox, credits(plan))
            else:
                receivers.append(link.receiver(inbox))
        with _stopping(board, stop):
            result = Worker(plan, index, config, parts, senders, inbox, trace, notify).run()
        for end in (*senders.values(), *receivers):
            end.close()
        return result
    except (PeerLost, ChannelError) as error:
        teller, line = board.first("lost", [index, str(error)])
        raise (PeerLost if teller == index else Abandoned)(line) from error
    except UserError as error:
        board.first("lost", [index, str(error)])
        raise
