"""The board: what workers and whoever drives them tell each other, on a store that all of them share.

Everything that happens per chunk goes over channels. Here go states (loaded, failed, a stream's progress), which stay
under their key until they are forgotten, and news, which are gone once they were read: orders go from the driver to a
box of every worker's, events from all workers to the driver's box. All of it is JSON.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from conf.errors import UserError
from runtime.orders import Close, Order, Stop, from_json, to_json
from runtime.reasons import Reason

log = logging.getLogger(__name__)

POLL_S = 0.05
FOREVER = timedelta(hours=1)
"""One wait for news; torch warns when it ends without, so it is long."""
DRIVER = -1
"""Whose box events go to."""


class PeerLost(Exception):  # noqa: N818  an event to report, not a programming error
    """A worker is gone or silent while work is owed. One line: who, what was waited for."""


class Abandoned(Exception):  # noqa: N818  an event, not an error of this worker
    """Another worker failed, or was the first to see a failure, and says so itself."""


class Box:
    """A queue of texts on a store: anybody posts, one reads, and what was read is gone.

    Args:
        store: a TCPStore (or a part of one), or a HashStore where all are threads.
        owner: who reads: a process's number, or `DRIVER`.
        generation: of the run: what is said to one generation is not heard in another.
    """

    def __init__(self, store: dist.Store, owner: int, generation: int = 0):
        self.store, self.owner = store, owner
        self._key = f"box/{owner}" if not generation else f"box/{generation}/{owner}"
        self._noted = f"{self._key}/noted"

    def __len__(self) -> int:
        return self.store.queue_len(self._key)

    def post(self, text: str) -> None:
        """Add a text behind all others."""
        self.store.queue_push(self._key, text)
        # A HashStore's queue wakes one of those who wait, whatever for; its `set` wakes all.
        self.store.set("posted", "")

    @property
    def noted(self) -> list[str]:
        """What the owner, or who was it before, has taken and `note`d."""
        return json.loads(self.store.get(self._noted)) if self.store.check([self._noted]) else []

    def note(self, texts: Sequence[str]) -> None:
        """Keep what was taken for who may come in the owner's place; none: that is over."""
        if texts:
            self.store.set(self._noted, json.dumps(texts))
        else:
            self.store.delete_key(self._noted)

    def take(self, store: dist.Store | None = None) -> str:
        """The oldest text; waits for one on `store`, a connection that nobody else uses meanwhile."""
        return (self.store if store is None else store).queue_pop(self._key).decode()


class BoxReader(threading.Thread):
    """Reads a box until it is closed, without polling.

    Args:
        box: whose texts are read.
        deliver: takes each, in order, in this thread.
        gone: called, in this thread, when the store can be reached no more.
    """

    def __init__(self, box: Box, deliver: Callable[[str], None], gone: Callable[[], None]):
        super().__init__(name=f"box {box.owner}", daemon=True)
        self._box, self._deliver, self._gone = box, deliver, gone
        self._held: list[str] = []

    def known(self) -> list[str]:
        """All texts so far; does not wait. They are delivered all the same, once the reader has started; until then a
        reader that comes in the place of this one knows them, too."""
        self._held = (self._held or self._box.noted) + [self._box.take() for _ in range(len(self._box))]
        self._box.note(self._held)
        return self._held

    def run(self) -> None:
        # A connection of its own: whoever waits on a store's connection keeps others from using it.
        for text in self._held:
            self._deliver(text)
        if self._held:
            self._box.note(())
        self._held, store = [], self._box.store.clone()
        store.set_timeout(FOREVER)
        while True:
            try:
                text = self._box.take(store)
            except dist.DistStoreError:
                continue  # an hour without news
            except RuntimeError:
                self._gone()
                return
            if not text:
                return
            self._deliver(text)

    def close(self) -> None:
        """Deliver what was posted so far, then read no more.

        A daemon thread that returns from C++ into a dying interpreter may abort it: end it before.
        """
        if not self.is_alive() or threading.current_thread() is self:
            return
        with suppress(RuntimeError):
            self._box.post("")
        self.join()


class Board:
    """What is told.

    Args:
        store: a TCPStore, or a HashStore where all workers are threads.
        index, workers: who this is (-1: the launcher), and how many processes there are.
    """

    def __init__(self, store: dist.Store, index: int, workers: int):
        self.store, self.index, self.workers = store, index, workers

    # -- states -----------------------------------------------------------------------------------------------------

    def tell(self, key: str, value: Any = True) -> None:
        self.store.set(key, json.dumps(value))

    def told(self, key: str) -> Any:
        """What was told under a key; None if nothing was."""
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def forget(self, key: str) -> None:
        """Delete what was told under a key, if anything was."""
        self.store.delete_key(key)

    def keys(self) -> int:
        """How much the store holds: keys, and news that nobody has read yet."""
        boxes = (Box(self.store, owner) for owner in range(DRIVER, self.workers))
        return self.store.num_keys() + sum(map(len, boxes))

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

    def refuse(self, stream: int, reason: Reason | UserError) -> None:
        """A stream cannot go on; the first reason stays, and whoever drives cancels what is left of the stream."""
        reason = reason if isinstance(reason, Reason) else Reason.of(reason)
        self.first(f"refused/{stream}", reason.to_dict())
        self.event({"event": "refused", "stream": stream})

    def refused(self, stream: int) -> Reason | None:
        """Why a stream could not go on; known until the driver has heard of its end."""
        told = self.told(f"refused/{stream}")
        return Reason.from_dict(told) if told else None

    # -- news -------------------------------------------------------------------------------------------------------

    def event(self, value: dict[str, Any]) -> None:
        """Tell the driver something: `{"event": NAME, ...}`."""
        Box(self.store, DRIVER).post(json.dumps(value))

    def order(self, order: Order) -> None:
        """Have the driver give an order to all workers: one gives all orders, so all workers read them in one order."""
        self.event({"event": "order", "order": to_json(order)})

    def give(self, order: Order, readers: Iterable[int], generation: int = 0) -> Order:
        """Put an order into the boxes of `readers`; for the driver alone. Returns it with its place among all."""
        order = replace(order, number=self.store.add("orders", 1) - 1)
        self.repeat(order, readers, generation)
        return order

    def repeat(self, order: Order, readers: Iterable[int], generation: int) -> None:
        """Give an order again, with the number that it has, to those who have not read it."""
        text = to_json(order)
        for reader in readers:
            Box(self.store, reader, generation).post(text)

    @property
    def given(self) -> int:
        """How many orders have been given."""
        return self.store.add("orders", 0)

    def events(self, deliver: Callable[[dict[str, Any]], None], gone: Callable[[], None]) -> BoxReader:
        """The reader, not started, of all events; there is one."""
        return BoxReader(Box(self.store, DRIVER), lambda text: deliver(json.loads(text)), gone)


class OrderReader(BoxReader):
    """Puts every order into a worker's inbox, the first ones first, until it is closed.

    Args:
        board: where orders come from.
        inbox: takes them.
        generation: of the run, whose orders these are.
        heard: is shown each order first, in this thread, whatever the loop is at.
    """

    def __init__(
        self,
        board: Board,
        inbox: queue.SimpleQueue,
        generation: int = 0,
        heard: Callable[[Order], None] = lambda order: None,
    ):
        super().__init__(Box(board.store, board.index, generation), self._put, self._left)
        self._inbox, self._heard = inbox, heard

    def orders(self) -> list[Order]:
        """All orders to this worker so far; does not wait. They go into the inbox all the same."""
        return [from_json(text) for text in self.known()]

    def _put(self, text: str) -> None:
        try:
            order = from_json(text)
        except UserError as error:
            log.warning("an order was skipped: %s", error)  # not one of this Everframe's
            return
        self._heard(order)
        self._inbox.put(order)

    def _left(self) -> None:
        """The driver is gone, and nobody waits for these streams any more."""
        self._inbox.put(Stop())
        self._inbox.put(Close())
