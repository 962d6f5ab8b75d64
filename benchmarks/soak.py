"""A server after hours, in minutes: `python -m benchmarks.soak`.

    --minutes 10      of people who come and go, three at a time
    --cycles 200      connections, opened and closed, after that
    --model NAME      that is served (pocket_avatar)

Half of the people watch over the WebSocket, half over WebRTC. Memory, descriptors and threads of the gateway and of its
workers are looked at all the while, late chunks by half, and what is left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import WebSocketException

from benchmarks import visitors
from benchmarks.people import LEASE_S, overrides
from benchmarks.record import bar, record
from benchmarks.serving import Server, holds
from benchmarks.visitors import Person
from serve.client import Refused

AT_ONCE = 3
LOOK_S = 5.0
WARM_S = 180.0
"""Until memory is to be flat."""
FLAT = 0.03
IN_TIME = "0.005"
"""Seconds by which a chunk may be late: the least that metrics tell apart."""
LATE = 0.005
"""Share of late chunks by which two halves may differ."""
SPARE_FILES, SPARE_THREADS, SPARE_TASKS, SPARE_MIB = 2, 1, 2, 3.0
"""What may be more after all cycles than before: a thread of a pool, a page of an allocator."""
WARM_CYCLES = 20


class Look(NamedTuple):
    """At one moment: seconds since the beginning, MiB of the gateway and of all workers, (late, all) chunks so far."""

    at: float
    gateway: float
    workers: float
    late: int
    chunks: int


class Coming:
    """People who come and go at one place, one after the other, WebSocket and WebRTC in turn.

    Args:
        url: of the server.
        seed: of their stays.
        over: set when nobody more is to come.
    """

    def __init__(self, url: str, seed: int, over: threading.Event):
        self._url, self._over, self._random = url, over, np.random.default_rng(seed)
        self.visits, self.failures, self.packets = {"websocket": 0, "webrtc": 0, "turned away": 0}, [], 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        turn = int(self._random.integers(2))
        while not self._over.is_set():
            kind, seconds = ("websocket", "webrtc")[turn % 2], float(self._random.uniform(5, 20))
            turn += 1
            try:
                self._visit(kind, seconds)
                self.visits[kind] += 1
            except Refused as refused:
                turned = refused.code == "full"  # as it is to be while chunks are late
                self.visits["turned away"] += turned
                self.failures += [] if turned else [f"{kind}: {refused}"]
                self._over.wait(1.0)
            except Exception as error:
                self.failures.append(f"{kind}: {type(error).__name__}: {error}"[:200])
                self._over.wait(1.0)

    def _visit(self, kind: str, seconds: float) -> None:
        if kind == "webrtc":
            self.packets += sum(asyncio.run(visitors.call(self._url, seconds)).values())
            return
        one = Person(self._url, int(self._random.integers(1 << 30)), seconds)
        one.run()
        if one.refused is not None:
            raise one.refused

    def join(self) -> None:
        """Wait for the last one."""
        self._thread.join(60)


def looked(server: Server, began: float) -> Look:
    """How things are."""
    told = server.metrics()

    def total(name: str) -> int:
        return int(sum(value for key, value in told.items() if key.startswith(name)))

    workers = sum(holds(pid).mib for pid in server.workers)
    name = "everframe_frame_lateness_seconds"
    chunks = total(f"{name}_count")
    in_time = sum(value for key, value in told.items() if key.startswith(f"{name}_bucket") and f'le="{IN_TIME}"' in key)
    return Look(time.monotonic() - began, holds(server.pid).mib, workers, chunks - int(in_time), chunks)


def visited(server: Server, minutes: float) -> tuple[list[Look], list[Coming]]:
    """People come and go for so long."""
    began, over, looks = time.monotonic(), threading.Event(), []
    places = [Coming(server.url, seed, over) for seed in range(AT_ONCE)]
    while time.monotonic() - began < 60 * minutes:
        time.sleep(LOOK_S)
        looks.append(looked(server, began))
    over.set()
    for place in places:
        place.join()
    return looks, places


def cycled(server: Server, count: int) -> int:
    """Open and close so many, WebSocket and WebRTC in turn; returns how many failed."""
    failures = 0
    for index in range(count):
        try:
            if index % 2:
                asyncio.run(visitors.call(server.url, 0.1))
            else:
                made = visitors.placed(server.url)
                known = {"session": made["id"], "secret": made["secret"]}
                connection, _, bare = visitors.opened(server.url, **known)
                connection.recv(10)
                visitors.stop(connection)
                connection.close()
                bare.close()
        except (OSError, TimeoutError, WebSocketException, Refused):
            failures += 1
            time.sleep(0.5)
    return failures


def rested(server: Server) -> dict[str, Any]:
    """What the processes hold when nobody is there."""
    with suppress(OSError):
        server.emptied(LEASE_S + 20)
    time.sleep(LEASE_S)
    return {
        "gateway": holds(server.pid)._asdict() | server.counts(),
        "workers": [holds(pid)._asdict() for pid in server.workers],
        "sessions": server.sessions(),
    }


def growth(looks: list[Look], name: str, warm_s: float) -> float:
    """By which share the last third of looks is above the first third of those after the warm part."""
    values = [getattr(look, name) for look in looks if look.at >= warm_s] or [getattr(look, name) for look in looks]
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / statistics.median(values[:third]) - 1


def halves(looks: list[Look]) -> tuple[float, float]:
    """Share of late chunks in both halves of the time."""
    middle = looks[len(looks) // 2]
    first = middle.late / max(1, middle.chunks)
    return first, (looks[-1].late - middle.late) / max(1, looks[-1].chunks - middle.chunks)


def main() -> bool:
    """Measure, record, print the bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--model", default="pocket_avatar")
    given = parser.parse_args()
    settings = overrides(given.model)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), *settings, "sink.inputs=null") as server:
        idle = rested(server)
        looks, places = visited(server, given.minutes)
        after = rested(server)
        cycled(server, WARM_CYCLES)
        before = rested(server)
        failures = cycled(server, given.cycles)
        end = rested(server)
    warm_s = min(WARM_S, 60 * given.minutes / 2)
    measured = bars(looks, places, warm_s, idle, after) | cycle_bars(given.cycles, failures, before, end)
    measured |= {"idle": idle, "after people": after, "before cycles": before, "after cycles": end}
    measured["looks"] = [look._asdict() for look in looks[:: max(1, len(looks) // 20)]]
    configuration = {"overrides": settings, "minutes": given.minutes, "cycles": given.cycles}
    command = f"python -m benchmarks.soak --minutes {given.minutes:g} --cycles {given.cycles} --model {given.model}"
    record("soak", command, configuration, measured)
    return all(one["passed"] for one in measured.values() if isinstance(one, dict) and "passed" in one)


def bars(
    looks: list[Look], places: list[Coming], warm_s: float, idle: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Of those who came and went."""
    visits = {kind: sum(place.visits[kind] for place in places) for kind in places[0].visits}
    failures = [failure for place in places for failure in place.failures]
    found = {
        "visits": bar(
            visits | {"failed": failures[:5]},
            "of both kinds, none failed",
            visits["websocket"] and visits["webrtc"] and not failures,
        )
    }
    for name in ("gateway", "workers"):
        grown = growth(looks, name, warm_s)
        found[f"memory of {name} after minute {warm_s / 60:g}"] = bar(f"{grown:+.2%}", f"<= {FLAT:.0%}", grown <= FLAT)
    first, second = halves(looks)
    found["late chunks, first half and second"] = bar(
        f"{first:.2%}, {second:.2%}", f"no more than {LATE:.1%} above", second <= first + LATE
    )
    sockets = [one["gateway"]["sockets"] for one in (idle, after)]
    found["sockets of the gateway, before and after"] = bar(sockets, "none more", sockets[1] <= sockets[0])
    sessions = after["sessions"]
    found["sessions left"] = bar(sessions, "0", not sessions)
    return found


def cycle_bars(cycles: int, failures: int, before: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """Of connections that were opened and closed."""
    spare = {
        "files": SPARE_FILES, "sockets": 0, "threads": SPARE_THREADS, "tasks": SPARE_TASKS, "mib": SPARE_MIB,
    }  # fmt: skip
    found = {f"{cycles} cycles that failed": bar(failures, "0", not failures)}
    for name, most in spare.items():
        more = end["gateway"][name] - before["gateway"][name]
        found[f"gateway, {name} more after {cycles} cycles"] = bar(round(more, 2), f"<= {most:g}", more <= most)
    for name in ("files", "threads", "mib"):
        more = sum(one[name] for one in end["workers"]) - sum(one[name] for one in before["workers"])
        found[f"workers, {name} more after {cycles} cycles"] = bar(
            round(more, 2), f"<= {spare[name]:g}", more <= spare[name]
        )
    found["sessions left after cycles"] = bar(end["sessions"], "0", not end["sessions"])
    return found


if __name__ == "__main__":
    raise SystemExit(not main())
