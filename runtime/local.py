"""A plan in one process: workers are threads, channels are queues. The same workers as under any launcher."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist

from conf.schema import Config
from parallel.channels import ChannelError, Failure, Inbox
from parallel.local import LocalChannel
from parallel.plan import Plan
from runtime.board import Board
from runtime.group import local_groups
from runtime.network import Ends, credits
from runtime.process import run_worker
from runtime.reasons import Reason
from runtime.running import GRACE_S, SETTLE_S, Running, Stopped


class LocalRun(Running):
    """A plan's workers as threads of this process.

    Args:
        plan, config: what to run.
        folder: for traces.
        stdin: where live sources read; None: standard input.
    """

    one_host = True

    def __init__(self, plan: Plan, config: Config, folder: Path, stdin: BinaryIO | None = None):
        super().__init__(plan, config, dist.HashStore())
        self.folder, self.stdin = folder, stdin
        self._inboxes: list[Inbox] = [Inbox() for _ in plan.members]
        room, patience = credits(plan, config), config.launcher.timeout_s
        first = {member.worker: index for index, member in reversed(list(enumerate(plan.members)))}
        self._channels = {(a, b): LocalChannel(a, b, self._inboxes[first[b]], room, patience) for a, b in plan.channels}
        self._groups = local_groups(plan, self._inboxes, patience)
        self._errors: dict[int, Exception] = {}
        self._threads: list[threading.Thread] = []

    def _launch(self) -> None:
        for index in range(self.plan.processes):
            thread = threading.Thread(target=self._work, args=(index,), name=f"worker-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self, index: int) -> None:
        def connect(number: int, plan: Plan, index: int, inbox: Inbox, device: torch.device) -> Ends:
            worker, group = plan.members[index].worker, self._groups[index]
            return Ends({b: c.sender for (a, b), c in self._channels.items() if a == worker}, group, group.close)

        board = Board(self.store, index, self.plan.processes)
        try:
            run_worker(
                self.generation, index, self.config, board, self.folder, connect,
                stdin=self.stdin, inbox=self._inboxes[index], plan=self.plan,
            )  # fmt: skip
        except Exception as error:
            self._errors[index] = error
            self._break(index, str(error))
        self._wake.set()

    def _break(self, index: int, why: str) -> None:
        """Process `index` is gone: what the channels of real processes would notice."""
        for group in self._groups:
            group.abort()
        for inbox in self._inboxes:
            inbox.put(Failure(index, ChannelError(index, why)))

    def _gone(self, index: int) -> str | None:
        return None if self._threads[index].is_alive() else "its thread ended"

    def _end(self) -> None:
        """A thread cannot be ended: it is told, and looks when it has done what it is at."""
        self._break(-1, "the run was ended")

    def _release(self) -> None:
        # Who was stopped before anything was streamed may be waiting for a pipe's writer, and has no file to finish.
        patience = SETTLE_S if isinstance(self._error, Stopped) and not self._begun else GRACE_S
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for channel in self._channels.values():
            channel.sender.close()
        super()._release()

    def _fault(self, reason: Reason, index: int) -> Exception:
        return self._errors.get(index) or super()._fault(reason, index)
