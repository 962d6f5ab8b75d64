"""Orders: what is said to running workers beside their data. Every worker reads all of them, in one order."""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import SinkConfig, SourceConfig, StreamConfig
from runtime.state import Keep


@dataclass(frozen=True)
class Open:
    """A new stream.

    Attributes:
        stream: its number; streams are numbered in the order in which they are opened.
        config, source, sink: what it is, what drives it, where it goes.
        keep: how its state is kept, and what it goes on from; None: neither.
    """

    stream: int
    config: StreamConfig
    source: SourceConfig
    sink: SinkConfig
    keep: Keep | None = None


@dataclass(frozen=True)
class Prompt:
    """From the next chunk that is sampled on, `prompt` holds.

    Attributes:
        accepted: when it was said, on the clock that a machine's processes share.
    """

    stream: int
    prompt: str
    accepted: float


@dataclass(frozen=True)
class Stop:
    """Drain: nothing more is sampled, what is under way is finished. None: every stream."""

    stream: int | None = None


@dataclass(frozen=True)
class Cancel:
    """Nothing more is computed; what has left so far stays, finished and playable. None: every stream."""

    stream: int | None = None


@dataclass(frozen=True)
class Status:
    """Every worker says how it stands, under the question's number."""

    question: int


@dataclass(frozen=True)
class Close:
    """No stream will be opened any more: workers leave when those that are open have ended."""


Order = Open | Prompt | Stop | Cancel | Status | Close
