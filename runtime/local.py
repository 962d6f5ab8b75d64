"""A plan in one process: workers are threads, channels are queues. The same workers as under any launcher."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from conf.schema import Config
from parallel.channels import ChannelError, Failure, LocalChannel
from parallel.plan import Plan
from runtime.parts import load_parts, open_outputs
from runtime.report import Timeline
from runtime.trace import Trace, worker_trace
from runtime.worker import Worker


def credits(plan: Plan) -> int:
    """Messages a channel may hold: with room for every chunk in flight, a full ring cannot block itself."""
    return plan.in_flight + 3


class LocalRun:
    """A plan's workers in this process, loaded and ready.

    Args:
        plan, config: what to run.
        stop: ends the streams when set.
        stdin: where live sources read; None: standard input.

    Raises:
        UserError: before anything is written, if a source, a weight file or a setting is wrong.
    """

    def __init__(self, plan: Plan, config: Config, stop: threading.Event, stdin: BinaryIO | None = None):
        self.plan, self.config = plan, config
        self.parts = [load_parts(plan, index, config, stop, stdin=stdin) for index in range(plan.workers)]

    def run(self, folder: Path, notify: Callable[[int, Timeline], None]) -> list[dict[str, Any]]:
        """Run every stream to its end.

        Args:
            folder: for traces.
            notify: told a stream's index and timeline after every finished chunk.

        Returns:
            Every worker's part of the report.
        """
        plan, config = self.plan, self.config
        self.parts[plan.decode].outputs = open_outputs(config, config.model.network.audio is not None)
        inboxes: list[queue.Queue] = [queue.Queue() for _ in range(plan.workers)]
        room, patience = credits(plan), config.launcher.timeout_s
        channels = {(a, b): LocalChannel(a, b, inboxes[b], room, patience) for a, b in plan.channels}
        traces: list[Trace] = [worker_trace(folder, index) for index in range(plan.workers)]
        workers = [
            Worker(
                plan,
                index,
                config,
                self.parts[index],
                {b: c.sender for (a, b), c in channels.items() if a == index},
                inboxes[index],
                traces[index],
                notify,
            )
            for index in range(plan.workers)
        ]
        results: dict[int, dict[str, Any]] = {}
        errors: list[Exception] = []

        def work(index: int) -> None:
            try:
                results[index] = workers[index].run()
            except Exception as error:
                errors.append(error)
                for inbox in inboxes:
                    inbox.put(Failure(index, ChannelError(index, str(error))))

        threads = [threading.Thread(target=work, args=(i,), name=f"worker-{i}") for i in range(plan.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[i] for i in range(plan.workers)]
