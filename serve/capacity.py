"""What a model's pipeline takes, measured at the start on the pipeline itself: endless silence, as fast as it goes.

Its steady rate is the number of sessions that it keeps in time. What its workers cost this host's processors meanwhile
comes with their pulses. One stream does not fill a plan of several workers, so such a plan is measured again with more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from conf.errors import UserError
from conf.schema import Config
from conf.schema.stream import SINKS
from runtime.admission import STREAMS, Admission, most_streams
from runtime.board import Board
from runtime.orders import host
from runtime.pulse import key
from runtime.running import Running
from serve.served import Served

log = logging.getLogger(__name__)

WARM_S, WATCHED_S, POLL_S = 1.5, 3.0, 0.25
"""Before costs are looked at; then, at least; and between two looks."""
LONGEST_S = 60.0
"""A pipeline that has not made CHUNKS by then has a rate that nobody would wait for."""
CHUNKS = 8
"""Of every stream, at least."""
CHUNKS_AFAR = 24
"""Of every stream of a pipeline of which only the end is heard."""
ENDLESS = 1_000_000
END_S = 30.0
"""Longest wait for what is under way when a stream is stopped."""
SILENCE = {"audio": None, "actions": None, "inputs": None, "session": None, "pace": "free"}


class Measured(NamedTuple):
    """What a model's pipeline takes.

    Attributes:
        rate: sessions that it keeps in time.
        cores: seconds of this host's processors that a second of one session takes; 0: it computes elsewhere.
        room: sessions that memory holds.
    """

    rate: float
    cores: float
    room: int


class Open(Protocol):
    """A pipeline that this process holds (`serve.served.Held`)."""

    config: Config
    running: Running

    async def open(self, name: str, changes: dict[str, Any]) -> int: ...


Sleep = Callable[[float], Awaitable[None]]


async def measured(served: Open, sleep: Sleep = asyncio.sleep) -> Measured:
    """Measure a pipeline on which no session runs yet; takes some seconds.

    Raises:
        UserError: the model cannot be run as it is configured.
        RuntimeError: a stream was ended by a fault, or the workers are gone.
    """
    room = await asyncio.to_thread(streams_held, served.running, served.config)
    found = await _run(served, 1, sleep)
    workers = served.running.plan.workers
    if workers > 1 and room > 1:
        found = max(found, await _run(served, min(room, workers + 1), sleep))
    rate, cores = found
    return Measured(rate, cores, room)


async def measured_afar(served: Served, workers: int) -> Measured:
    """Measure a pipeline that runs elsewhere, by what it reports of short streams; it costs this host nothing.

    Args:
        served: the pipeline; nobody else hears of its streams meanwhile.
        workers: that it has.

    Raises:
        UserError, RuntimeError: as `measured`.
    """
    rates = [await _rate_afar(served, count) for count in ((1, workers + 1) if workers > 1 else (1,))]
    return Measured(max(rates), 0.0, STREAMS)


async def _rate_afar(served: Served, count: int) -> float:
    """What so many streams at once make, in seconds of video a second."""
    reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    served.on_ended = lambda number, report: reports.put_nowait(report)
    changes = {"chunks": CHUNKS_AFAR, "source": SILENCE, "sink": dict.fromkeys((*SINKS, "session"))}
    opened = 0
    for index in range(count):
        try:
            await served.open(f"measured-{count}-{index}", changes)
        except UserError:  # no more are held at once
            if not opened:
                raise
            break
        opened += 1
    try:
        async with asyncio.timeout(LONGEST_S):
            found = [await reports.get() for _ in range(opened)]
    except TimeoutError as error:
        raise RuntimeError(f"{served.name} has not made {CHUNKS_AFAR} chunks within {LONGEST_S:g} s") from error
    if failed := next((report["error"]["line"] for report in found if "error" in report), None):
        raise RuntimeError(failed)
    rate = opened * min(report["realtime_factor"] or 0.0 for report in found)
    log.info("%s: %d at once make %.2f s of video a second", served.name, opened, rate)
    return rate


def streams_held(running: Running, config: Config) -> int:
    """Streams whose bytes fit into every worker's memory at once, by what was free when they had loaded."""
    admission, low, high = Admission(running.board, running.plan, config), 0, most_streams(config)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            admission.check_room("stream", middle)
            low = middle
        except UserError:
            high = middle - 1
    return low


async def _run(served: Open, count: int, sleep: Sleep) -> tuple[float, float]:
    """(rate of all, cores that a session takes) of `count` streams at once."""
    pipeline = served.running.pipeline
    changes = {"chunks": ENDLESS, "source": SILENCE, "sink": dict.fromkeys((*SINKS, "session"))}
    numbers: list[int] = []
    try:
        for index in range(count):
            numbers.append(await served.open(f"measured-{count}-{index}", changes))
        cores = await _watch(served, numbers, sleep)
        for number in numbers:
            await asyncio.to_thread(pipeline.stop, number)
        reports = [await asyncio.to_thread(pipeline.result, number, END_S) for number in numbers]
    except (UserError, RuntimeError):
        raise
    except Exception as error:  # whatever ends workers or streams
        raise RuntimeError(str(error)) from error
    finally:
        for number in numbers:
            if not pipeline.ended(number):
                with suppress(Exception):  # what has gone wrong is being raised
                    await asyncio.to_thread(pipeline.cancel, number)
    # The slowest stands for all: they share the workers, and each is to be in time.
    rate = count * min(report["realtime_factor"] or 0.0 for report in reports)
    log.info("%s: %d at once make %.2f s of video a second", served.config.model.name, count, rate)
    return rate, cores / rate if rate else 0.0


async def _watch(served: Open, numbers: list[int], sleep: Sleep) -> float:
    """Processors that are busy while streams run, until all have made enough."""
    waited, pipeline = 0.0, served.running.pipeline
    before: dict[str, tuple[float, float]] = {}
    while True:
        await sleep(POLL_S)
        waited += POLL_S
        if not before and waited >= WARM_S:
            before = await asyncio.to_thread(costs, served.running)
        made = [(await asyncio.to_thread(pipeline.progress, number) or {}).get("chunks", 0) for number in numbers]
        over = any(pipeline.ended(number) for number in numbers) or waited >= LONGEST_S
        if over or (waited >= WARM_S + WATCHED_S and min(made) >= CHUNKS):
            after = await asyncio.to_thread(costs, served.running)
            return sum(_busy(before[process], after[process]) for process in before.keys() & after.keys())


def costs(running: Running) -> dict[str, tuple[float, float]]:
    """(seconds of processors so far, when that was told) of every process of this host whose worker computes on its
    processors, as its pulse tells; by the process's name."""
    board: Board = running.board
    plan, here, found = running.plan, host(), {}
    for index, member in enumerate(plan.members):
        room, pulse = board.told(f"room/{member.worker}"), board.told(key(index))
        if room and pulse and room["memory"] == here:
            found[pulse["process"]] = pulse["cpu_s"], pulse["now_s"]
    return found


def _busy(before: tuple[float, float], after: tuple[float, float]) -> float:
    (cpu, at), (cpu_later, later) = before, after
    return (cpu_later - cpu) / (later - at) if later > at else 0.0
