"""How many viewers a plan can serve: streams are added in the simulator until frames come late."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from parallel.durations import Durations
from parallel.plan import Plan
from parallel.simulator import Chunk, Simulator
from parallel.timeline import FAR

SHORTEST, ENOUGH = 12, 8000
"""Chunks of a stream that are watched at least; and of all streams together, about."""


@dataclass(frozen=True)
class Service:
    """What viewers are promised.

    Attributes:
        play_s: that a chunk's frames last on the screen.
        buffer_s: between a stream's first frame being there and being shown; what comes late by less is not seen.
        on_time: share of frames that must be there when they are due.
        seconds: of every stream that are watched.
        seed: of the moments at which streams open, all within the first `play_s`.
    """

    play_s: float
    buffer_s: float = 0.0
    on_time: float = 0.999
    seconds: float = 60.0
    seed: int = 0


def lateness(chunks: list[Chunk], play_s: float) -> list[float]:
    """Seconds by which each chunk of one stream is late for a screen that began with the first one's first frame.

    A chunk is due when the one before it ends on the screen; frames of a chunk leave together.
    """
    begins = chunks[0].shown
    return [chunk.left - (begins + chunk.number * play_s) for chunk in chunks[1:]]


def share_on_time(plan: Plan, durations: Durations, streams: int, service: Service) -> float:
    """Share of frames on time in steady running, of `streams` streams driven by live sources.

    What a new attention sink costs once, at the beginning of a stream, is the prediction's idle periods; it is not
    watched here, nor are as many chunks again, in which a stream catches up.

    Chunk k's conditioning is there when the time that it drives has passed: `opened + (k + 1) play_s`, as sound is.
    """
    simulator, draw = Simulator(plan, durations), random.Random(service.seed)
    # Many streams are many samples: they are watched for less long.
    settled = 2 * max((v.in_force_from for v in plan.workload.versions if v.in_force_from < FAR), default=0)
    length = settled + max(SHORTEST, min(round(service.seconds / service.play_s), ENOUGH // streams))
    for stream in range(streams):
        opened = draw.random() * service.play_s

        def live(chunk: int, opened: float = opened) -> float:
            return opened + (chunk + 1) * service.play_s

        simulator.open(stream, opened, length, live)
    # What has not left long after its time never will at this load.
    latest = (length + 3) * service.play_s + service.buffer_s
    simulator.run(lambda: simulator.now > latest)
    found: dict[int, list[Chunk]] = {}
    for chunk in simulator.chunks:
        found.setdefault(chunk.stream, []).append(chunk)
    timely = sum(late <= service.buffer_s for own in found.values() for late in lateness(own, service.play_s)[settled:])
    return timely / (streams * (length - 1 - settled))


def most_streams(plan: Plan, durations: Callable[[], Durations], service: Service, limit: int) -> int:
    """The most streams that are served as promised; 0 if one is too many.

    Args:
        durations: fresh ones for every trial.
        limit: no more are possible, as a rate of chunks or a size of memory says.
    """

    def served(streams: int) -> bool:
        return share_on_time(plan, durations(), streams, service) >= service.on_time

    # The limit is near: down from it in steps that double, until so many are served, and then between the last two.
    good, bad, step = limit, limit + 1, 1
    while good > 0 and not served(good):
        good, bad, step = max(0, good - step), good, 2 * step
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if served(middle) else (good, middle)
    return good
