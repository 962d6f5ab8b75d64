"""As many people as are let in, and what those do to them who do not behave: `python -m benchmarks.people`.

    --seconds 60      of each of the two rounds
    --model NAME      that is served (pocket_avatar)

A server takes as many sessions as it finds it can, and refuses one more. What each session sampled was recorded:
replayed it gives its latents. Then some of them are people who take nothing, vanish, send garbage, or interrupt every
second; the others' late chunks are counted against the first round.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import serving
from benchmarks.record import bar, record
from benchmarks.serving import Server
from benchmarks.visitors import Garbage, Interrupter, Person, Stuck, Vanishing

LEAST = 4
"""Sessions on two cores."""
BAD = (Stuck, Vanishing, Garbage)
LEASE_S = 3.0
COMING_S = 60.0
"""Longest wait for a place: nobody is let in while others are late."""
SETTLE_S = 8.0
"""Chunks of those who are there are late when one more comes, until they have found their new times."""
NOISE = 0.005
"""Share of late chunks by which two rounds differ of themselves."""
SETTINGS = ("serve.sessions_per_caller=64", "serve.posts_per_minute=10000", f"serve.lease_s={LEASE_S}")


def overrides(model: str) -> list[str]:
    """Of the server."""
    return [f"model={model}", *SETTINGS]


def gathered(url: str, count: int, seconds: float, first: int, kinds: dict[int, type[Person]]) -> list[Person]:
    """So many people, each there before the next comes, and all settled; those of other kinds by number."""
    people, settled = [], threading.Event()
    for number in range(count):
        one = kinds.get(number, Person)(url, first + number, seconds, settled, queue=True)
        one.start()
        one.opened.wait(COMING_S)
        people.append(one)
    time.sleep(SETTLE_S)
    settled.set()
    return people


def one_more(url: str) -> dict[str, Any]:
    """What one is told for whom there is no place, over HTTP and over the WebSocket."""
    last = Person(url, 999, 1.0)
    last.run()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{url}/v1/sessions", b"{}", {"Content-Type": "application/json"})
    try:
        with direct.open(request, timeout=10) as answer:
            status, after = answer.status, None
    except urllib.error.HTTPError as error:
        status, after = error.code, error.headers.get("Retry-After")
    socket = last.refused and (last.refused.code, last.refused.retry_after_s)
    return {"status": status, "retry_after": after, "socket": socket}


def share(people: list[Person]) -> tuple[int, int]:
    """(late chunks, all chunks) of some people."""
    return sum(one.late for one in people), sum(one.chunks for one in people)


def behaved(server: Server, count: int, seconds: float) -> tuple[list[Person], dict[str, Any]]:
    """A round of people who behave, and what one more is told meanwhile."""
    people = gathered(server.url, count, seconds, 100, {})
    time.sleep(min(5.0, seconds / 2))
    refused = one_more(server.url)
    for one in people:
        one.join()
    return people, refused


def beside(server: Server, count: int, seconds: float) -> tuple[list[Person], list[Any]]:
    """A round in which some do not behave; people, the one who interrupts last, and the others."""
    people = gathered(server.url, count - len(BAD), seconds, 200, {count - len(BAD) - 1: Interrupter})
    nuisances = [kind(server.url) for kind in BAD]  # they find what places there are
    for one in nuisances:
        one.start()
    for one in people:
        one.join()
    for one in nuisances:
        one.over.set()
    for one in nuisances:
        one.join(30)
    return people, nuisances


def replays(server: Server, people: list[Person], model: str) -> list[bool]:
    """Whether each session's inputs make its latents once more."""
    found, reports = [], server.reports()
    for one in people:
        report = reports[one.id]
        again = serving.replayed(server, one.id, one.seed, report["chunks"], f"model={model}")
        found.append(one.done["latents_sha256"] == report["latents_sha256"] == again)
    return found


def main() -> bool:
    """Measure, record, print the bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.people")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="pocket_avatar")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Server(Path(folder), *overrides(given.model)) as server:
            capacity, before = server.capacity[given.model], time.monotonic()
            spent = serving.own_cpu_s()
            first, refused = behaved(server, capacity, given.seconds)
            emptied = server.emptied(10)
            spent, passed = serving.own_cpu_s() - spent, time.monotonic() - before
            second, nuisances = beside(server, capacity, given.seconds)
            emptied = server.emptied(LEASE_S + 20) and emptied
        there = [one for one in [*first, *second] if one.done is not None]
        same = replays(server, there, given.model)
    measured = bars(capacity, first, second, refused, same, emptied)
    measured["nuisances"] = {type(one).__name__: one.times for one in nuisances}
    measured["the people's own cores"] = round(spent / passed, 3)
    configuration = {"overrides": overrides(given.model), "seconds": given.seconds}
    command = f"python -m benchmarks.people --seconds {given.seconds:g} --model {given.model}"
    record("people", command, configuration, measured)
    return all(one["passed"] for one in measured.values() if isinstance(one, dict) and "passed" in one)


def bars(
    capacity: int, first: list[Person], second: list[Person], refused: dict[str, Any], same: list[bool], emptied: bool
) -> dict[str, Any]:
    """What was measured, against what was to be."""
    late, chunks = share(first)
    late_beside, chunks_beside = share(second)
    before, after = late / max(1, chunks), late_beside / max(1, chunks_beside)
    stayed = sum(one.done is not None for one in [*first, *second])
    people = len(first) + len(second)
    told = refused["status"] == 503 and refused["retry_after"] and refused["socket"] and refused["socket"][1]
    latencies = sorted(latency for one in first for latency in one.latencies)
    return {
        "sessions at once, by admission": bar(capacity, f">= {LEAST}", capacity >= LEAST),
        "one more": bar(refused, "503 with Retry-After, and the same over a WebSocket", told),
        "people who stayed to the end": bar(f"{stayed} of {people}", "all", stayed == people),
        "late chunks, all behave": bar(f"{late} of {chunks}", "<= 2 %", before <= 0.02),
        "late chunks beside those who do not": bar(
            f"{late_beside} of {chunks_beside}", f"no more than {NOISE:.1%} above", after <= before + NOISE
        ),
        "sessions that replay to their latents": bar(f"{sum(same)} of {len(same)}", "all", same and all(same)),
        "sessions left": bar("none" if emptied else "some", "none", emptied),
        "seconds from an event to its picture, median": latencies and round(latencies[len(latencies) // 2], 3),
    }


if __name__ == "__main__":
    raise SystemExit(not main())
