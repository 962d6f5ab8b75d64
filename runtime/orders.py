"""Orders: what is said to running workers beside their data. Every worker reads all of them, in one order.

They travel as JSON and are checked by the same schema at both ends, so nothing that is no order ever reaches a worker.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from conf.errors import UserError, nearest
from conf.schema import PlanConfig, SinkConfig, SourceConfig, StreamConfig
from conf.typed import shown, typed
from runtime.state import Keep


@cache
def host() -> str:
    """Names the machine as it has started: moments of `time.perf_counter` are comparable where this is the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()


@dataclass(frozen=True)
class Open:
    """A new stream.

    Attributes:
        stream: its number; streams are numbered in the order in which they are opened.
        config, source, sink: what it is, what drives it, where it goes.
        keep: how its state is kept, and what it goes on from; None: neither.
        number: the order's place among all orders.
    """

    stream: int
    config: StreamConfig
    source: SourceConfig
    sink: SinkConfig
    keep: Keep | None = None
    number: int = -1


@dataclass(frozen=True)
class Prompt:
    """From the next chunk that is sampled on, `prompt` holds. One that is heard twice is known by its number.

    Attributes:
        accepted: when it was said, in seconds of `time.perf_counter` on the machine `host`; on any other machine, when
            it was read there.
    """

    stream: int
    prompt: str
    accepted: float
    host: str = ""
    number: int = -1


@dataclass(frozen=True)
class Stop:
    """Drain: nothing more is sampled, what is under way is finished. None: every stream."""

    stream: int | None = None
    number: int = -1


@dataclass(frozen=True)
class Cancel:
    """Nothing more is computed; what has left so far stays, finished and playable. None: every stream."""

    stream: int | None = None
    number: int = -1


@dataclass(frozen=True)
class Status:
    """Every worker says how it stands, under the question's number."""

    question: int
    number: int = -1


@dataclass(frozen=True)
class Halt:
    """The generation is over: what is under way is thrown away, and the next is waited for.

    Attributes:
        generation: the number of the next.
    """

    generation: int
    number: int = -1


@dataclass(frozen=True)
class Prepare:
    """While the generation goes on: load what this process needs as a member of another plan.

    Attributes:
        generation: from which that plan is to hold.
        plan: its settings.
        index: the member.
    """

    generation: int
    plan: PlanConfig
    index: int
    number: int = -1


@dataclass(frozen=True)
class Cut:
    """Every stream is to be cut before its next chunk."""

    number: int = -1


@dataclass(frozen=True)
class Close:
    """No stream will be opened any more: workers leave when those that are open have ended."""

    number: int = -1


Order = Open | Prompt | Stop | Cancel | Status | Halt | Prepare | Cut | Close

KINDS = {kind.__name__.lower(): kind for kind in (Open, Prompt, Stop, Cancel, Status, Halt, Prepare, Cut, Close)}


def to_json(order: Order) -> str:
    """An order as it travels."""
    return json.dumps({"order": type(order).__name__.lower(), **asdict(order)})


def from_json(text: str | bytes) -> Order:
    """The order that a text says, checked by the configuration's own schema.

    Raises:
        UserError: it says none.
    """
    try:
        values = dict(json.loads(text))
        kind = values.pop("order")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"order {str(text)[:80]}", "is no order", "give what to_json makes") from error
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"order={shown(kind)}", "there is no such order", nearest(str(kind)[:80], KINDS))
    order = typed(KINDS[kind], values, kind)
    if isinstance(order, Prompt) and order.host != host():
        return Prompt(order.stream, order.prompt, time.perf_counter(), host(), order.number)
    return order
