"""A model that is served: a running pipeline of this process, and what is told of its streams."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from conf.errors import UserError
from conf.schema import Config
from runtime.offer import offer_of
from runtime.pipeline import Pipeline
from runtime.running import Running

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
    """

    name: str
    offer: dict[str, Any]
    on_ended: Callable[[int, dict[str, Any]], None]
    lost: str | None

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

    def health(self) -> list[dict[str, Any]]:
        """How every process is, as `runtime.running.Health` has it."""
        ...

    async def close(self) -> None:
        """End every stream and the pipeline."""
        ...


class Held:
    """One whose pipeline this process has started.

    Args:
        config: of the pipeline.
        running: the pipeline, begun.
        open_stream: opens a stream on it, with changes to its configuration.
    """

    def __init__(self, config: Config, running: Running, open_stream: OpenStream):
        self.config, self.running, self._open = config, running, open_stream
        self.name, self.offer = config.model.name, offer_of(config)
        self.on_ended: Callable[[int, dict[str, Any]], None] = lambda number, report: None
        self.lost: str | None = None
        self._loop, self._health = asyncio.get_running_loop(), [asdict(one) for one in running.health()]
        self._closing = False
        running.pipeline.observers.append(self._ended)
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

    def health(self) -> list[dict[str, Any]]:
        """See `Served`."""
        return self._health

    async def close(self) -> None:
        """See `Served`."""
        self._closing = True
        await asyncio.to_thread(self.running.__exit__, None, None, None)
