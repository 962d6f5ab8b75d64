"""How many sessions a pipeline that has joined keeps in time: tried on itself, before anybody is let in.

Endless silence as fast as it goes, as `serve.capacity` has it, but all that is known here is what the pipeline tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from conf.errors import UserError
from serve.capacity import CHUNKS, END_S, ENDLESS, LONGEST_S, POLL_S, SILENCE

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


class Tried(Protocol):
    """What is asked of one (`serve.joined.Joined`)."""

    name: str
    hello: dict[str, Any]
    on_ended: Callable[[int, dict[str, Any]], None]

    async def open(self, name: str, changes: dict[str, Any]) -> int: ...

    async def stop(self, number: int) -> None: ...

    async def cancel(self, number: int) -> None: ...

    def progress(self, number: int) -> dict[str, Any] | None: ...


async def rate_of(joined: Tried, sleep: Sleep = asyncio.sleep) -> float:
    """Seconds of video that all its streams make in a second: the sessions that it keeps in time.

    Args:
        joined: no session runs on it yet; `on_ended` is this call's meanwhile.

    Raises:
        UserError: a stream cannot be opened as the pipeline is configured.
        RuntimeError: it has gone, or a stream was ended by a fault, or does not end.
    """
    found = await _rate(joined, 1, sleep)
    # One stream does not fill a plan of several workers.
    if (workers := int(joined.hello.get("workers", 1))) > 1:
        found = max(found, await _rate(joined, workers + 1, sleep))
    log.info("%s: makes %.2f s of video a second", joined.name, found)
    return found


async def _rate(joined: Tried, count: int, sleep: Sleep) -> float:
    """The same, of at most `count` streams: as many as there is room for."""
    changes = {"chunks": ENDLESS, "source": SILENCE, "sink": {"session": None, "video": None}}
    reports: dict[int, dict[str, Any]] = {}
    over, numbers = asyncio.Event(), []

    def ended(number: int, report: dict[str, Any]) -> None:
        reports[number] = report
        over.set()

    joined.on_ended = ended
    try:
        for index in range(count):
            try:
                numbers.append(await joined.open(f"measured-{count}-{index}", changes))
            except UserError:
                if not numbers:
                    raise
                break
        await _watch(joined, numbers, over, sleep)
        for number in numbers:
            await joined.stop(number)
        while len(reports) < len(numbers):
            over.clear()
            await asyncio.wait_for(over.wait(), END_S)
    except TimeoutError:
        raise RuntimeError(f"a stream that was stopped has not ended for {END_S:g} s") from None
    finally:
        with suppress(RuntimeError):  # it has gone
            for number in set(numbers) - set(reports):
                await joined.cancel(number)
    for report in reports.values():
        if "error" in report:
            raise RuntimeError(report["error"]["line"])
    # The slowest stands for all: they share the workers, and each is to be in time.
    return len(numbers) * min(report["realtime_factor"] or 0.0 for report in reports.values())


async def _watch(joined: Tried, numbers: list[int], over: asyncio.Event, sleep: Sleep) -> None:
    """Until all streams have made enough, or one has ended, or it takes too long."""
    waited = 0.0
    while waited < LONGEST_S and not over.is_set():
        if min((joined.progress(number) or {}).get("chunks", 0) for number in numbers) >= CHUNKS:
            return
        await sleep(POLL_S)
        waited += POLL_S
