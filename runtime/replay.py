"""The chunks that are sampled again: a journal's lines, each given once, in order."""

from __future__ import annotations

from typing import Any

from runtime.journal import End, Journal, Line
from stages.sources.backlog import Backlog

TOLD = 256
"""Chunks, the newest, of which a session's gateway is told again: it has heard of all but the last few."""


class Replay:
    """What was sampled before.

    Args:
        journal: of the stream; None: nothing was.
        first: the chunk that it goes on with.

    Attributes:
        next: the first chunk that is sampled anew.
        last: the last line; None: there is none.
        again: whether another opened the stream's sources before, in this run.
        end: where the stream had ended already; None: it had not.

    Raises:
        UserError: lines are missing.
    """

    def __init__(self, journal: Journal | None, first: int):
        lines, self._journal = journal.lines(first) if journal else [], journal
        self.again = journal is not None and journal.again
        self._lines = {line.chunk: line for line in lines}
        self.last = lines[-1] if lines else None
        self.next = first + len(lines)
        self.end: End | None = journal.end if journal else None
        self._told = [[line.chunk, line.events, line.at] for line in lines[-TOLD:] if line.events or line.at]

    def __contains__(self, chunk: int) -> bool:
        """Whether a chunk is still to be sampled again."""
        return chunk in self._lines

    def take(self, chunk: int) -> Line | None:
        """A chunk's line; None: it is sampled for the first time."""
        return self._lines.pop(chunk, None)

    def over(self, chunk: int) -> bool:
        """Whether the stream is known to have ended before `chunk`."""
        return self.end is not None and chunk >= self.end.end

    def told(self) -> dict[str, Any]:
        """What a session's source says of it to its gateway."""
        return {"chunk": self.next, "sampled": self._told}

    def read(self, name: str) -> int:
        """Bytes of a live source that it was sampled from."""
        return self._journal.read.get(name, 0) if self._journal else 0

    def backlog(self, name: str, taken: int) -> Backlog | None:
        """Of a live source, behind so many bytes; None: there is no journal."""
        return Backlog(self._journal.folder, name, taken) if self._journal else None

    def picture(self, sent: bytes | None) -> bytes | None:
        """The picture that a session began with: what it says, or, where nobody is left to ask, what it said."""
        if self._journal is None:
            return sent
        if sent is None:
            return self._journal.held("picture")
        self._journal.hold("picture", sent)
        return sent
