"""A pipeline without its workers: stand-ins take their orders and tell what workers would."""

from __future__ import annotations

import queue
from functools import partial
from typing import Any

import torch.distributed as dist

from parallel.builders import build
from parallel.channels import Inbox
from runtime.board import DRIVER, Board, OrderReader
from runtime.orders import Cancel, Open, Order, Status, Stop
from runtime.pipeline import Pipeline
from runtime.workload import describe
from tests.helpers import config_of


class Driven:
    """A driver's pipeline over two workers that are none.

    Args:
        overrides: of the configuration.
        brief: whether every stream ends as soon as it was opened; others end when they are stopped or cancelled.

    Attributes:
        boards: of the workers.
    """

    def __init__(self, *overrides: str, brief: bool = False):
        self.config = config_of("model=nano", "plan=timestep", "plan.workers=2", "output_dir=x", *overrides)
        store, self.brief, self._live = dist.HashStore(), brief, {}
        self.boards = [Board(store, worker, 2) for worker in range(2)]
        self._heard: queue.SimpleQueue[Order] = queue.SimpleQueue()
        inboxes = [Inbox() for _ in self.boards]
        self._readers = [OrderReader(*pair) for pair in zip(self.boards, inboxes, strict=True)]
        for worker, inbox in enumerate(inboxes):
            inbox.at_once = partial(self._hear, worker)
        plan = build(self.config.plan, describe(self.config))
        self.pipeline = Pipeline(Board(store, DRIVER, 2), plan, self.config)
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.close()
        self.pipeline.leave()

    def orders(self) -> list[Order]:
        """All orders that were given since the last call, as the first worker has read them."""
        self.pipeline.status()  # behind them; once it is answered all have been read
        return self.heard()

    def heard(self) -> list[Order]:
        """Those that it has read already."""
        found = []
        while not self._heard.empty():
            found.append(self._heard.get())
        return [order for order in found if not isinstance(order, Status)]

    def end(self, stream: int, **report: Any) -> None:
        """Tell that a stream has ended."""
        name = self._live.pop(stream)
        self.boards[0].event({"event": "ended", "stream": stream, "report": {"stream": name, **report}})

    def _hear(self, worker: int, order: Order) -> None:
        if worker == 0:
            self._heard.put(order)
        if isinstance(order, Status):
            status = {"event": "status", "question": order.question, "worker": worker, "status": {"worker": worker}}
            self.boards[worker].event(status)
        elif worker == 0 and isinstance(order, Open):
            self._live[order.stream] = order.config.id
            if self.brief:
                self.end(order.stream)
        elif worker == 0 and isinstance(order, Stop | Cancel):
            for stream in list(self._live) if order.stream is None else {order.stream} & self._live.keys():
                self.end(stream)
