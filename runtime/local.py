"""A plan in one process: workers are threads, channels are queues. The same workers as under any launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from conf.schema import Config
from parallel.channels import ChannelError, Failure, Inbox, LocalChannel
from parallel.plan import Plan
from runtime.board import Abandoned, Board
from runtime.group import local_groups
from runtime.pipeline import Pipeline
from runtime.process import Ends, credits, run_worker


class LocalRun:
    """A plan's workers as threads of this process.

    Args:
        plan, config: what to run.
        folder: for traces.
        stdin: where live sources read; None: standard input.

    Attributes:
        pipeline: opens and ends streams.
    """

    def __init__(self, plan: Plan, config: Config, folder: Path, stdin: BinaryIO | None = None):
        self.plan, self.config, self.folder, self.stdin = plan, config, folder, stdin
        self.store = dist.HashStore()
        self.pipeline = Pipeline(Board(self.store, -1, plan.processes), plan, config)
        self._inboxes: list[Inbox] = [Inbox() for _ in plan.members]
        room, patience = credits(plan, config), config.launcher.timeout_s
        first = {member.worker: index for index, member in reversed(list(enumerate(plan.members)))}
        self._channels = {(a, b): LocalChannel(a, b, self._inboxes[first[b]], room, patience) for a, b in plan.channels}
        self._groups = local_groups(plan, self._inboxes, patience)
        self._results: dict[int, dict[str, Any]] = {}
        self._errors: list[Exception] = []
        self._threads: list[threading.Thread] = []

    def start(self, begin: Callable[[], None] = lambda: None) -> None:
        """Start the workers; `begin` is called once all have loaded."""
        for index in range(self.plan.processes):
            thread = threading.Thread(target=self._work, args=(index, begin), name=f"worker-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self) -> list[dict[str, Any]]:
        """Wait until the pipeline has been closed and all streams have ended; returns every worker's part of a report.

        Raises:
            UserError: a source, a weight file or a setting is wrong.
        """
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise next((e for e in self._errors if not isinstance(e, Abandoned)), self._errors[0])
        self.pipeline.leave()
        return [self._results[i] for i in range(self.plan.processes)]

    def _work(self, index: int, begin: Callable[[], None]) -> None:
        def connect(inbox: Inbox, device: torch.device) -> Ends:
            worker, group = self.plan.members[index].worker, self._groups[index]
            return Ends({b: c.sender for (a, b), c in self._channels.items() if a == worker}, group, group.close)

        board = Board(self.store, index, self.plan.processes)
        try:
            self._results[index] = run_worker(
                self.plan, index, self.config, board, self.folder, connect,
                stdin=self.stdin, begin=begin if index == 0 else None, inbox=self._inboxes[index],
            )  # fmt: skip
        except Exception as error:
            self._errors.append(error)
            self.pipeline.lost(error)
            board.first("failed", str(error))
            for group in self._groups:
                group.abort()
            for inbox in self._inboxes:
                inbox.put(Failure(index, ChannelError(index, str(error))))
