"""What a model's pipeline takes, measured at the start on the pipeline itself: endless silence, as fast as it goes.

Its steady rate is the number of sessions that it keeps in time. What its workers cost this host's processors meanwhile
comes with their pulses; other devices they are taken to fill. One stream does not fill a plan of several workers, so
such a plan is measured again with more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from conf.errors import UserError
from conf.schema import Config
from conf.schema.stream import GREY, SINKS
from runtime.admission import most_streams
from runtime.board import Board
from runtime.orders import host
from runtime.pulse import key
from runtime.running import Running
from serve.joined import Joined
from serve.resources import CORES, Memory, Needs, devices_of, held

log = logging.getLogger(__name__)

WARM_S, WATCHED_S, POLL_S = 1.5, 3.0, 0.25
"""Before costs are looked at; then, at least; and between two looks."""
LONGEST_S = 60.0
"""Who has not made CHUNKS by then is judged by what it has made."""
CHUNKS = 8
"""Of every stream, at least."""
CHUNKS_AFAR = 24
"""Of every stream of a pipeline that tells once a second how far it is."""
ENDLESS = 1_000_000
END_S = 30.0
"""Longest wait for what is under way when a stream is ended."""
SILENCE = {"audio": None, "actions": None, "camera": None, "inputs": None, "session": None, "pace": "free"}


def _changes(sees: bool) -> dict[str, Any]:
    """What a stream is that is measured: nothing is heard, and where a camera is looked at, all is grey."""
    source = SILENCE | ({"video": GREY} if sees else {})
    return {"chunks": ENDLESS, "source": source, "sink": dict.fromkeys((*SINKS, "session"))}


class Open(Protocol):
    """A pipeline that this process holds (`serve.served.Held`)."""

    config: Config
    running: Running

    async def open(self, name: str, changes: dict[str, Any]) -> int: ...


Sleep = Callable[[float], Awaitable[None]]


async def measured(served: Open, sleep: Sleep = asyncio.sleep) -> Needs:
    """Measure a pipeline on which no session runs yet; takes some seconds.

    Raises:
        UserError: the model cannot be run as it is configured.
        RuntimeError: a stream was ended by a fault, or the workers are gone.
    """
    memory, most = await asyncio.to_thread(memory_of, served.running), most_streams(served.config)
    found = [await _run(served, count, sleep) for count in _counts(served.running.plan.workers, held(memory, most))]
    rate, cores = max(found)
    return _needs(rate, cores, memory, most)


async def measured_afar(served: Joined, cores: float, sleep: Sleep = asyncio.sleep) -> Needs:
    """Measure a pipeline that runs elsewhere, by what it tells of short streams.

    Args:
        served: the pipeline; nobody else hears of its streams meanwhile.
        cores: of this host, all of which it is taken to use if it computes on them: what they cost is not told.

    Raises:
        UserError, RuntimeError: as `measured`.
    """
    counts = _counts(served.workers, held(served.memory, served.most))
    rate = max([await _rate_afar(served, count, sleep) for count in counts])
    here = any(one.here for one in served.memory)
    return _needs(rate, cores / rate if here else 0.0, served.memory, served.most)


def _counts(workers: int, room: int) -> list[int]:
    """How many streams are measured at once."""
    return [1, min(room, workers + 1)] if workers > 1 and room > 1 else [1]


def _needs(rate: float, cores: float, memory: Sequence[Memory], most: int) -> Needs:
    shares = dict.fromkeys(devices_of(memory), 1 / rate if rate else inf)
    return Needs(rate, shares | {CORES: cores}, memory, most)


async def _rate_afar(served: Joined, count: int, sleep: Sleep) -> float:
    """What so many streams at once make, in seconds of video a second."""
    reports: dict[int, dict[str, Any]] = {}
    served.on_ended = reports.__setitem__
    changes = _changes(served.offer["sees"])
    numbers: list[int] = []
    try:
        for index in range(count):
            numbers.append(await served.open(f"measured-{count}-{index}", changes))
        told = await _told(served, numbers, reports, sleep)
    finally:
        for number in numbers:
            await served.cancel(number)
    waited = 0.0
    while len(reports) < count and served.lost is None and waited < END_S:  # the next are measured alone
        await sleep(POLL_S)
        waited += POLL_S
    if not all(one.get("chunks") for one in told):
        raise RuntimeError(f"{served.name} has made nothing within {LONGEST_S:g} s")
    # As in `_run`: the slowest stands for all.
    rate = count * min(one["fps_now"] / one["fps"] for one in told)
    log.info("%s: %d at once make %.2f s of video a second", served.name, count, rate)
    return rate


async def _told(
    served: Joined, numbers: Sequence[int], reports: Mapping[int, dict[str, Any]], sleep: Sleep
) -> list[dict[str, Any]]:
    """How far streams are when all have made enough, or time is up.

    Raises:
        RuntimeError: one has ended, or the pipeline has gone.
    """
    waited = 0.0
    while True:
        await sleep(POLL_S)
        waited += POLL_S
        if served.lost is not None:
            raise RuntimeError(served.lost)
        if reports:
            report = next(iter(reports.values()))
            raise RuntimeError(report["error"]["line"] if "error" in report else "a stream has ended by itself")
        told = [served.progress(number) or {} for number in numbers]
        if waited >= LONGEST_S or all(one.get("chunks", 0) >= CHUNKS_AFAR for one in told):
            return told


def memory_of(running: Running) -> list[Memory]:
    """What every worker's streams need, by what was told when it had loaded."""
    rooms = (running.board.told(f"room/{worker}") for worker in range(running.plan.workers))
    return [Memory.of(room) for room in rooms if room]


async def _run(served: Open, count: int, sleep: Sleep) -> tuple[float, float]:
    """(rate of all, cores that a session takes) of `count` streams at once."""
    pipeline = served.running.pipeline
    changes = _changes(served.config.model.noise_scale is not None)
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
