"""The threads of a worker's stages: the loop hands a pass over, and is told when its work has been done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from devices import Mark, Queue
from parallel.message import Message
from parallel.passes import Pass
from runtime.guard import Guard


@dataclass(frozen=True)
class Performed:
    """A stage has done its work.

    Attributes:
        item: the pass.
        message: what goes on from it.
    """

    item: Pass
    message: Message


class StageThread(threading.Thread):
    """Does the work of a stage, pass by pass in the order in which they are handed over.

    What waits here is bounded by the chunks that the pacer lets in: nothing is handed over that has not entered.

    Args:
        name: of the stage, as reports say it.
        work: (pass, message) -> the message that goes on.
        deliver: takes `Performed`; and an exception that is no stream's, which ends the run.
        guard: of the worker.
        queue: where its work goes: the worker's, after the passes that were given to it, or, without a turn, its own.
        turn: makes the context in which work is given to the worker's queue; None: the stage works beside it.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Pass, Message], Message],
        deliver: Callable[[object], None],
        guard: Guard,
        queue: Queue,
        turn: Callable[[], AbstractContextManager] | None = None,
    ):
        super().__init__(name=name, daemon=True)
        self.work, self.deliver, self.guard, self.queue, self.turn = work, deliver, guard, queue, turn
        self.at: tuple[Pass, float] | None = None
        """The pass that is being worked on, and since when, in seconds of `time.perf_counter`."""
        self._items: SimpleQueue[tuple[Pass, Message, Mark | None] | None] = SimpleQueue()

    def put(self, item: Pass, message: Message) -> None:
        """Have a pass worked on; at once where the machine had no thread left, so that a stream that failed by that
        ends like any other."""
        computed = self.queue.device.mark()
        if self.ident is None:
            self._perform(item, message, computed)
        else:
            self._items.put((item, message, computed))

    def close(self, drop: bool = False) -> None:
        """Stop when everything that was handed over has been done.

        Args:
            drop: whether only what is being done is finished, and the rest thrown away.
        """
        while drop and not self._items.empty():
            with suppress(Empty):
                self._items.get_nowait()
        self._items.put(None)
        if self.is_alive() and threading.current_thread() is not self:
            self.join()
        if self.turn is None:
            self.queue.close()

    def run(self) -> None:
        self.queue.use()
        while (taken := self._items.get()) is not None:
            try:
                self._perform(*taken)
            except Exception as error:
                self.deliver(error)
                return

    def _perform(self, item: Pass, message: Message, computed: Mark | None) -> None:
        try:
            with self.guard(item.stream, f"{self.name} of chunk {item.chunk}"):
                done = None
                with self.turn() if self.turn else self.queue.after(computed, *message.tensors.values()):
                    self.at = item, time.perf_counter()
                    self.guard.mark(message)
                    message = self.work(item, message)
                    done = self.queue.device.mark()
                # What is told must have happened. Others have their turns meanwhile.
                if self.turn and done:
                    done.wait()
        finally:
            self.at = None
        self.deliver(Performed(item, self.guard.mark(message)))
