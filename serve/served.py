"""A model that is served: a running pipeline of this process, and what is told of its streams."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from conf.errors import UserError
from conf.schema import Config
from runtime.offer import offer_of
from runtime.pipeline import Pipeline
from runtime.running import Running
from serve.resources import Memory

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at workers."""
OpenStream = Callable[[Pipeline, Config, str, dict[str, Any]], int]


class Served(Protocol):
    """What the gateway asks of a model, wherever its pipeline runs.

    Attributes:
        name: of the model.
        offer: what it is, as plain values (`runtime.offer`).
        on_ended: called in the loop with the number and the report of a stream that has ended.
        lost: why the pipeline is gone; None: it is there.
        recovers: whether streams go on when a worker is lost: their stages then come again.
        frozen: why all streams stand still, since the pipeline goes from one generation to the next; None: they do not.
        on_frozen: called in the loop when they begin to stand still, with True and why, and when they go on.
        on_planned: called in the loop when there is another plan: how many times as fast it is as the one that was
            measured, and what its workers' memory holds; None: as before.
    """

    name: str
    offer: dict[str, Any]
    on_ended: Callable[[int, dict[str, Any]], None]
    lost: str | None
    recovers: bool
    frozen: str | None
    on_frozen: Callable[[bool, str], None]
    on_planned: Callable[[float, Sequence[Memory] | None], None]

    async def open(self, name: str, changes: dict[str, Any]) -> int:
        """Open a stream that is what the configuration says but for `changes` (those of `{"open": NAME, ...}`).

        Raises:
            UserError: it cannot be opened; `runtime.admission.Full`: not now.
        """
        ...

    async def stop(self, number: int) -> None:
        """Drain a stream."""
        ...

    async def cancel(self, number: int) -> None:
        """End a stream at once."""
        ...

    async def change(self, plan: dict[str, Any]) -> int:
        """Have streams go on under another plan; returns the number of its generation.

        Args:
            plan: settings of `plan` that are changed.

        Raises:
            UserError: it cannot be. RuntimeError: the pipeline is gone, or does not answer.
        """
        ...

    def health(self) -> list[dict[str, Any]]:
        """How every process is, as `runtime.running.Health` has it."""
        ...

    async def close(self) -> None:
        """End every stream and the pipeline."""
        ...


class Generations:
    """What is told of a pipeline's generations, for whoever has sessions on it.

    Attributes:
        frozen, on_frozen, on_planned: as `Served` has them.
    """

    def __init__(self):
        self.frozen: str | None = None
        self.on_frozen: Callable[[bool, str], None] = lambda frozen, why: None
        self.on_planned: Callable[[float, Sequence[Memory] | None], None] = lambda speed, memory: None

    def turned(self, told: Mapping[str, Any]) -> None:
        """Take in what one of `runtime.pipeline.Pipeline.changers` is told.

        Raises:
            KeyError, TypeError, ValueError: that is nothing it may be told.
        """
        self.frozen = str(told.get("why") or "its workers change") if told["frozen"] else None
        self.on_frozen(self.frozen is not None, self.frozen or "")
        if told.get("speed") is not None:
            rooms = told.get("rooms")
            self.on_planned(float(told["speed"]), None if rooms is None else [Memory.of(room) for room in rooms])


class Held(Generations):
    """One whose pipeline this process has started.

    Args:
        config: of the pipeline.
        running: the pipeline, begun.
        open_stream: opens a stream on it, with changes to its configuration.
    """

    def __init__(self, config: Config, running: Running, open_stream: OpenStream):
        super().__init__()
        self.config, self.running, self._open = config, running, open_stream
        self.name, self.offer = config.model.name, offer_of(config)
        self.on_ended: Callable[[int, dict[str, Any]], None] = lambda number, report: None
        self.lost: str | None = None
        self.recovers = config.launcher.in_place
        self._loop, self._health = asyncio.get_running_loop(), [asdict(one) for one in running.health()]
        self._closing = False
        running.pipeline.observers.append(self._ended)
        running.pipeline.changers.append(lambda told: self._loop.call_soon_threadsafe(self.turned, told))
        for work in (self._watch, self._look):
            threading.Thread(target=work, name=f"served {self.name}", daemon=True).start()

    def _ended(self, number: int, report: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(lambda: self.on_ended(number, report))

    def _watch(self) -> None:
        try:
            self.running.wait()
            self.lost = "its pipeline has ended"
        except Exception as error:
            self.lost = str(error)
            if not self._closing:
                log.error("%s: the pipeline is gone: %s", self.name, error)

    def _look(self) -> None:
        """Ask how workers are, beside the loop: the answer is in a store that all of them use."""
        while self.lost is None:
            with suppress(RuntimeError):  # the store is gone with the workers
                self._health = [asdict(one) for one in self.running.health()]
            time.sleep(LOOK_S)

    async def open(self, name: str, changes: dict[str, Any]) -> int:
        """See `Served`."""
        try:
            return await asyncio.to_thread(self._open, self.running.pipeline, self.config, name, changes)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(self.lost or str(error)) from error

    async def stop(self, number: int) -> None:
        """See `Served`."""
        await asyncio.to_thread(self.running.pipeline.stop, number)

    async def cancel(self, number: int) -> None:
        """See `Served`."""
        await asyncio.to_thread(self.running.pipeline.cancel, number)

    async def change(self, plan: dict[str, Any]) -> int:
        """See `Served`."""
        try:
            return await asyncio.to_thread(self.running.pipeline.change, plan)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(self.lost or str(error)) from error

    def health(self) -> list[dict[str, Any]]:
        """See `Served`."""
        return self._health

    async def close(self) -> None:
        """See `Served`."""
        self._closing = True
        await asyncio.to_thread(self.running.__exit__, None, None, None)
