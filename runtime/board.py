"""The board: what workers and their user tell each other once, on a key-value store that all of them share.

Everything that happens per chunk goes over channels; here go having loaded, having failed, orders, progress, results.
"""

from __future__ import annotations

import json
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

from conf.errors import UserError
from runtime.orders import Close, Order, Stop

POLL_S = 0.05
FOREVER = timedelta(hours=1)
"""One wait for an order; torch warns when it ends without, so it is long."""


class PeerLost(Exception):  # noqa: N818  an event to report, not a programming error
    """A worker is gone or silent while work is owed. One line: who, what was waited for."""


class Abandoned(Exception):  # noqa: N818  an event, not an error of this worker
    """Another worker failed, or was the first to see a failure, and says so itself."""


class Board:
    """What is told once.

    Args:
        store: a TCPStore, or a HashStore where all workers are threads.
        index, workers: who this is (-1: the launcher), and how many workers there are.
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
        while not self.store.check([key]):
            time.sleep(POLL_S)
            if self.told("failed") is not None:
                raise Abandoned(self.told("failed"))
            if time.monotonic() > end:
                raise PeerLost(f"nothing was heard of {key} for {timeout_s:.0f} s")

    def meet(self, point: str, timeout_s: float) -> None:
        """Wait until every worker is at `point`; raises as `wait` does."""
        self.tell(f"{point}/{self.index}")
        for other in range(self.workers):
            self.wait(f"{point}/{other}", timeout_s)

    # -- streams that cannot go on ----------------------------------------------------------------------------------

    def refuse(self, stream: int, error: UserError) -> None:
        """A stream cannot go on, by a mistake of its user's; the first reason stays."""
        self.first(f"refused/{stream}", [error.value, error.rule, error.remedy])

    def refused(self, stream: int) -> UserError | None:
        """Why a stream could not go on."""
        told = self.told(f"refused/{stream}")
        return UserError(*told) if told else None

    # -- orders -----------------------------------------------------------------------------------------------------

    def order(self, order: Order) -> None:
        """Say something to all workers."""
        number = self.store.add("orders", 1) - 1
        for worker in range(self.workers):
            self.store.set(f"orders/{worker}/{number}", pickle.dumps(order))

    def orders(self) -> Iterator[Order]:
        """All orders to this worker so far; does not wait."""
        for number in count():
            if not self.store.check([key := f"orders/{self.index}/{number}"]):
                return
            yield pickle.loads(self.store.get(key))


class OrderReader(threading.Thread):
    """Puts every order into a worker's inbox, the first ones first, until it is closed.

    Args:
        board: where orders come from.
        inbox: takes them.
    """

    def __init__(self, board: Board, inbox: queue.SimpleQueue):
        super().__init__(name="orders", daemon=True)
        self._board, self._inbox, self._closed, self._number = board, inbox, threading.Event(), 0
        # A connection of its own: whoever waits on a store's connection keeps others from using it.
        self._store = board.store.clone()

    @property
    def _key(self) -> str:
        return f"orders/{self._board.index}/{self._number}"

    def run(self) -> None:
        while not self._closed.is_set():
            try:
                self._store.wait([self._key], FOREVER)
                order = pickle.loads(self._store.get(self._key))
            except dist.DistStoreError:
                continue
            except RuntimeError:
                # The launcher is gone, and nobody waits for these streams any more.
                self._inbox.put(Stop())
                self._inbox.put(Close())
                return
            if not self._closed.is_set():
                self._inbox.put(order)
            self._number += 1

    def close(self) -> None:
        """Read no more. A daemon thread that returns from C++ into a dying interpreter may abort it: end it before."""
        self._closed.set()
        with suppress(RuntimeError):
            # What it waits for, whatever it says.
            self._board.store.set(self._key, pickle.dumps(Close()))
        if self.is_alive():
            self.join()
