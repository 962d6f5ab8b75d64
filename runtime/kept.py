"""What a process keeps of streams from one generation of its run to the next: their ends in the world outside.

Everything else of a stream is made again from its cut. An end cannot be: bytes that were read from a pipe are not read
again, and a viewer who is connected would see the connection go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class End(Protocol):
    """An end of a stream outside."""

    def leave(self) -> None:
        """Let go of it, since another process goes on with the stream: nobody outside is told of an end."""
        ...


@dataclass
class Kept:
    """By stream number.

    Attributes:
        sources: what drives a stream live (`runtime.sources`).
        outputs: where it goes (`runtime.output.Output`).
    """

    sources: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)

    def leave(self, sources: bool, outputs: bool, streams: set[int] | None = None) -> None:
        """Let go of what the next generation has no use for here.

        Args:
            sources, outputs: whether this process samples, and puts out, in the next generation.
            streams: that go on; None: all do.
        """
        for ends, stays in ((self.sources, sources), (self.outputs, outputs)):
            for stream in [one for one in ends if not stays or (streams is not None and one not in streams)]:
                ends.pop(stream).leave()
